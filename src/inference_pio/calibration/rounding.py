"""Weights rounded with a calibration text in mind, kept layer by layer where held-out text bears it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inference_pio.calibration.forward import Progress
from inference_pio.calibration.groups import Watched, groups_within
from inference_pio.calibration.held_out import HeldOut, parted
from inference_pio.calibration.input_pass import BUDGET_BYTES, collect_inputs, watched_layers
from inference_pio.calibration.input_statistics import InputStatistics
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import InvalidSetting
from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.compressed_module import CompressedModule

STACK_BYTES = 2**28
"""Gram matrices of experts are factored together as long as they take no more than this."""


@dataclass(frozen=True)
class Form:
    """What a layer is to become: a class of compressed modules, and its group."""

    kind: type[CompressedLinear] | type[CompressedExperts]
    group: int

    def nearest(self, module: nn.Module) -> CompressedModule:
        """The layer's compressed form, each weight rounded to the nearest."""
        if issubclass(self.kind, CompressedLinear):
            return self.kind.from_linear(module, self.group)
        return self.kind.from_experts(module, self.group)


@dataclass
class Rounded:
    """The compressed form of every layer, and how it was come by."""

    modules: dict[str, Any]
    """Compressed forms by path; and norms and routers that a method puts other weights into."""
    kept: dict[str, bool] = field(default_factory=dict)
    """By group of layers: whether the calibrated rounding was kept."""
    unseen_experts: int = 0
    divergence: tuple[float, float] = (0.0, 0.0)
    """On held-out text, of rounding to nearest and of what was kept."""
    source: dict[str, Any] = field(default_factory=dict)
    method: str = "gptq"
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By what makes and reads channels: how their scales were come by."""
    left: dict[str, str] = field(default_factory=dict)
    """The channels that are not scaled, and why."""

    def to_json(self) -> dict[str, Any]:
        nearest, kept = self.divergence
        scaled = {"scales": self.scales, "not_scaled": self.left} if self.method == "awq" else {}
        return {
            "method": self.method, "source": self.source, "kept": [name for name, kept in self.kept.items() if kept],
            "rounded_to_nearest": [name for name, kept in self.kept.items() if not kept],
            "held_out_divergence": {"nearest": nearest, "kept": kept}, "unseen_experts": self.unseen_experts,
            **scaled,
        }  # fmt: skip


def check_length(model: nn.Module, source: CalibrationSource, paths: Sequence[str]) -> None:
    """Raise InvalidSetting, with the way out, for a text too short to learn from and to hold a part out of."""
    learned, _ = parted(source)
    widest = max(max(one.widths) for one in watched_layers(model, paths))
    if source.tokens and learned.tokens < widest:
        raise InvalidSetting(
            f"{source.name} leaves {learned.tokens} tokens to calibrate on, and the widest layer has {widest} inputs: "
            f"give {widest - learned.tokens} tokens more at least (10 times as many are better), or calibration='none'."
        )


def round_calibrated(
    model: nn.Module, forms: Mapping[str, Form], source: CalibrationSource, progress: Progress | None = None,
    budget_bytes: int = BUDGET_BYTES, settled: Mapping[str, CompressedModule] | None = None,
) -> Rounded:  # fmt: skip
    """Round every layer of `forms` by the Gram matrices of its inputs; nothing of the model is edited.

    A layer group (a decoder layer, most often) keeps that only if the divergence on held-out text falls by it, given
    what was kept before; else it is rounded to nearest. `settled` are forms that stand already.
    """
    check_length(model, source, list(forms))
    learned, judged = parted(source)
    told = {"name": source.name, "tokens": learned.tokens, "held_out_tokens": judged.tokens, "sha256": source.digest}
    nearest = {path: form.nearest(model.get_submodule(path)) for path, form in forms.items()}
    found = Rounded({**(settled or {}), **nearest}, source=told)
    candidates: dict[str, CompressedModule] = {}
    watched = list(groups_within(watched_layers(model, list(forms)), True, budget_bytes))
    for number, group in enumerate(watched):
        part = part_of(progress, "calibration", number, len(watched))
        paths = [one.path for one in group]
        statistics = by_reader(collect_inputs(model, learned, paths, budget_bytes=budget_bytes, progress=part))
        for one in group:
            candidates[one.path], unseen = _candidate(one, forms[one.path], statistics)
            found.unseen_experts += unseen
    choose_by_layer(model, found, candidates, HeldOut(model, judged), progress)
    return found


def by_reader(statistics: Iterator[InputStatistics]) -> dict[str, InputStatistics]:
    return {reader: one for one in statistics for reader in one.readers}


def choose_by_layer(
    model: nn.Module, found: Rounded, candidates: Mapping[str, nn.Module], held_out: HeldOut,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Take the candidates of each decoder layer into `found` if they lessen the divergence, given those before."""
    groups: dict[str, list[str]] = {}
    for path in candidates:
        groups.setdefault(layer_of(path), []).append(path)
    with stood_in(model, found.modules):
        first = least = held_out.divergence(model)
    for number, (name, paths) in enumerate(groups.items()):
        tried = {**found.modules, **{path: candidates[path] for path in paths}}
        with stood_in(model, tried):
            divergence = held_out.divergence(model)
        found.kept[name] = divergence < least
        if found.kept[name]:
            found.modules, least = tried, divergence
        if progress:
            progress("held-out text", (number + 1) / len(groups))
    found.divergence = (first, least)


def layer_of(path: str) -> str:
    """The path of the decoder layer that a module is in; its own where it is in none.

    >>> layer_of("model.layers.3.mlp.up_proj"), layer_of("lm_head")
    ('model.layers.3', 'lm_head')
    """
    parts = path.split(".")
    numbered = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: numbered + 1])


# ---------------------------------------------------------------- one layer


def _candidate(one: Watched, form: Form, statistics: Mapping[str, InputStatistics]) -> tuple[CompressedModule, int]:
    """A layer's calibrated form, and how many expert matrices no token reached, which are rounded to nearest."""
    if issubclass(form.kind, CompressedLinear):
        linear: Any = one.module
        seen = statistics[one.path]
        weight = linear.weight.detach().t() if isinstance(linear, Conv1D) else linear.weight.detach()
        codes, scale = form.kind.quantize_with_gram(weight[None], _gram(seen, weight)[None], [seen.count], form.group)
        return form.kind.from_linear(linear, form.group, lambda _: (codes[0], scale[0].contiguous())), 0
    unseen = 0

    def quantize(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal unseen
        seen = [statistics.get(f"{one.path}.{name}[{expert}]") for expert in range(weight.shape[0])]
        unseen += sum(found is None for found in seen)
        return _experts(form, weight, seen)

    return form.kind.from_experts(one.module, form.group, quantize), unseen


def _experts(form: Form, weight: Tensor, seen: Sequence[InputStatistics | None]) -> tuple[Tensor, Tensor]:
    """Codes and scales of all experts, those that were seen a few at a time."""
    codes, scale = form.kind.quantize(weight, form.group)
    there = [(expert, found) for expert, found in enumerate(seen) if found is not None]
    together = max(1, STACK_BYTES // (weight.shape[-1] ** 2 * 8))
    for start in range(0, len(there), together):
        experts, statistics = zip(*there[start : start + together], strict=True)
        grams = torch.stack([_gram(one, weight) for one in statistics])
        made = form.kind.quantize_with_gram(weight[list(experts)], grams, [one.count for one in statistics], form.group)
        codes[list(experts)], scale[list(experts)] = made
    return codes, scale


def _gram(seen: InputStatistics, like: Tensor) -> Tensor:
    assert seen.gram is not None  # the pass was asked for it
    return seen.gram.to(like.device)


def part_of(progress: Progress | None, stage: str, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda _, share: progress(stage, (number + share) / count)
