"""Modules of fewer units: which go, how many of each, what is refitted to make up for it, judged by held-out text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.head_groups import HeadGroups
from inference_pio.anatomy.latent_attention import RESULT
from inference_pio.anatomy.mlp_channels import InnerChannels
from inference_pio.anatomy.parts import within
from inference_pio.anatomy.prunable import Prunable, ReadUnits, Weights
from inference_pio.anatomy.removable_layers import stack_layers
from inference_pio.anatomy.routed_experts import RoutedExperts
from inference_pio.calibration.fewer_experts import FewerExperts, fewer_experts
from inference_pio.calibration.forward import Progress
from inference_pio.calibration.groups import groups_within
from inference_pio.calibration.held_out import HeldOut, parted
from inference_pio.calibration.input_pass import BUDGET_BYTES, collect_inputs, watched_layers
from inference_pio.calibration.input_statistics import InputStatistics
from inference_pio.calibration.output_pass import OutputWeights
from inference_pio.calibration.rounding import STACK_BYTES, by_reader, part_of
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.calibration.stray_tokens import with_stray_tokens
from inference_pio.calibration.stream_refit import refit_stream
from inference_pio.calibration.twins import pruned_twin, twin_of
from inference_pio.calibration.widths import Curve, allocate_widths
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.channel_removal import block_order, refitted, removal_order, weighed

STRAYS = 0.125
"""Of the tokens of a text, unless it is said. Where experts are narrowed it is none: reference models of experts
diverge by 10% less to 21% more with so many, of which each spoils what an expert learns from."""
UNIFORM, MEASURED = "uniform", "measured"
REFITTED = "refitted"


@dataclass
class Candidate:
    """One way to narrow all modules: their new weights, the units that stay, and the divergence on held-out text."""

    weights: dict[str, Weights] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    beside: dict[str, Tensor] = field(default_factory=dict)
    """New weights of linear layers that are not narrowed, by their paths."""
    divergence: float = float("inf")

    @property
    def widths(self) -> dict[str, int]:
        return {path: kept.shape[-1] for path, kept in self.kept.items()}


@dataclass
class Narrowed:
    """The candidate that was taken, and how it was come by."""

    taken: Candidate
    allocation: str
    divergences: dict[str, float]
    sensitivities: dict[str, float]
    """Of each module narrowed alone, the divergence on held-out text."""
    source: dict[str, Any]
    unseen_experts: int = 0
    experts: FewerExperts = field(default_factory=FewerExperts)
    outputs: str | None = None
    """Why outputs could not be weighed; None where they were."""
    stream: str | None = None
    """Why nothing was fitted to the whole model's stream, where that was asked; None where it was, or was not asked."""
    stray: float = 0.0
    """The share of the tokens learned from that others were put in place of."""
    saved_bytes: int = 0
    """What gradients needed and the device had no room for: it waited on the host."""

    def to_json(self) -> dict[str, Any]:
        return {
            **({"experts": self.experts.to_json()} if self.experts.kept else {}),
            "allocation": self.allocation, "widths": self.taken.widths, "held_out_divergence": self.divergences,
            "sensitivities": self.sensitivities, "source": self.source, "unseen_experts": self.unseen_experts,
            "outputs_not_weighed": self.outputs, "stream_not_fitted": self.stream,
            "stray": self.stray,
            **({"saved_on_host_bytes": self.saved_bytes} if self.saved_bytes else {}),
            "kept": {path: kept.tolist() for path, kept in self.taken.kept.items()},
        }  # fmt: skip


def narrow(
    model: nn.Module, units: Mapping[str, Prunable], widths: Mapping[str, int], source: CalibrationSource, *,
    ratio: float | None = None, align: Mapping[str, int] | None = None, stream: Callable[[str], bool] | None = None,
    stray: float | None = 0.0, progress: Progress | None = None, budget_bytes: int = BUDGET_BYTES,
) -> Narrowed:  # fmt: skip
    """Keep `widths[path]` units of each module, those without which it loses most, and refit what reads them. With
    `ratio`, that share of the parameters of inner channels goes where it costs least instead, if held-out text then
    loses less; heads and experts stay as many in every layer.

    What a module loses is measured: the divergence of the model with this module alone at its width; its channels
    share it by their part in the error of its outputs. With `stream`, which says whether a path is meant, the last
    linear layers of attentions and MLPs are then fitted again to the whole model's stream, where held-out text loses
    less by that. Of the text that channels and what is fitted are learned from, the share `stray` of the tokens is
    replaced by others; None: an eighth, and none where experts are narrowed. Nothing of the model is edited. Raises
    InvalidSetting for a text with fewer tokens than the widest module has channels.
    """
    learned, judged = parted(source)
    read = {path: one for path, one in units.items() if isinstance(one, ReadUnits)}
    channels = {path: one for path, one in read.items() if isinstance(one, InnerChannels)}
    mixtures = [one for one in units.values() if isinstance(one, RoutedExperts)]
    _check_length(source, learned, read)
    if stray is None:
        stray = 0.0 if any(one.stacked for one in read.values()) else STRAYS
    strayed = with_stray_tokens(model, learned, stray)
    held_out = HeldOut(model, judged)
    experts = fewer_experts(model, mixtures, widths, learned, held_out, progress) if mixtures else FewerExperts()
    found = {UNIFORM: Candidate(dict(experts.weights), dict(experts.kept))}
    outputs = OutputWeights(model, strayed)
    orders: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    unseen = 0
    for one, seen, weights in _walk(model, read, strayed, "calibration", budget_bytes, progress, outputs):
        orders[one.path], losses[one.path] = _orders(one, seen, weights)
        unseen += sum(part is None for part in seen)
        _narrow_into(found[UNIFORM], one, seen, orders[one.path], widths[one.path])
    sensitivities: dict[str, float] = {}
    if ratio is not None and len(channels) > 1:
        sensitivities = _sensitivities(model, channels, found[UNIFORM], held_out, progress)
        curves = {
            path: _curve(one, losses[path], widths[path], sensitivities[path], (align or {}).get(path, 1))
            for path, one in channels.items()
        }
        allotted = {**widths, **allocate_widths(curves, ratio)}
        found[MEASURED] = Candidate(dict(experts.weights), dict(experts.kept))
        for one, seen, _ in _walk(model, read, strayed, "refit", budget_bytes, progress):
            _narrow_into(found[MEASURED], one, seen, orders[one.path], allotted[one.path])
    for candidate in found.values():
        candidate.divergence = _judged(model, units, candidate, held_out)
    name = min(found, key=lambda allocation: found[allocation].divergence)
    told = {"name": source.name, "tokens": learned.tokens, "held_out_tokens": judged.tokens, "sha256": source.digest}
    divergences = {allocation: candidate.divergence for allocation, candidate in found.items()}
    made = None if stream is None else _to_the_stream(model, units, found[name], strayed, stream, progress)
    if isinstance(made, Candidate):
        made.divergence = divergences[REFITTED] = _judged(model, units, made, held_out)
        found[name] = min(found[name], made, key=lambda candidate: candidate.divergence)
    not_fitted = made if isinstance(made, str) else None
    return Narrowed(
        found[name], name, divergences, sensitivities, told, unseen, experts, outputs.why_not, not_fitted,
        stray, outputs.saved.nbytes,
    )  # fmt: skip


def _judged(
    model: nn.Module, units: Mapping[str, Prunable], candidate: Candidate, held_out: HeldOut
) -> float:  # fmt: skip
    beside = {path: twin_of(model.get_submodule(path), {"weight": weight}) for path, weight in candidate.beside.items()}
    with stood_in(model, {**_twins(units, candidate, candidate.weights), **beside}):
        return held_out.divergence(model)


def _to_the_stream(
    model: nn.Module, units: Mapping[str, Prunable], candidate: Candidate, learned: CalibrationSource,
    meant: Callable[[str], bool], progress: Progress | None,
) -> Candidate | str:  # fmt: skip
    """The same units, and what writes to the stream behind them fitted again; or why nothing is."""
    layers = stack_layers(model)
    if isinstance(layers, str):
        return layers
    if any(isinstance(one, HeadGroups) for one in units.values()):
        return "heads go, and with them inputs of the attentions' results"
    twins = _twins(units, candidate, candidate.weights)
    found = refit_stream(
        model, layers, [], lambda: stood_in(model, twins), learned, narrowed=twins, meant=meant,
        tokens=learned.tokens, progress=progress,
    )  # fmt: skip
    if not found:
        return "behind what goes no plain linear layer that is meant ends an attention or an MLP"
    made = Candidate({path: dict(weights) for path, weights in candidate.weights.items()}, dict(candidate.kept))
    for path, weight in found.items():
        above = next((one for one in units if within(path, one)), None)
        if above is None:
            made.beside[path] = weight
        else:
            made.weights[above][f"{path[len(above) + 1 :]}.weight"] = weight
    return made


def _twins(units: Mapping[str, Prunable], candidate: Candidate, paths: Iterable[str]) -> dict[str, nn.Module]:
    twins = {}
    for path in paths:
        one, weights = units[path], candidate.weights[path]
        if isinstance(one, HeadGroups):  # its result alone: run twice, an attention would fill a cache twice
            full = one.spread(candidate.kept[path][None], weights[one.down_name][None])[0]
            twins[one.down] = twin_of(one.module.get_submodule(RESULT), {"weight": full})
        else:
            twins[path] = pruned_twin(one, weights, candidate.widths[path])
    return twins


def _check_length(source: CalibrationSource, learned: CalibrationSource, read: Mapping[str, ReadUnits]) -> None:
    widest = max((one.width * one.block for one in read.values()), default=0)
    if source.tokens and learned.tokens < widest:
        raise InvalidSetting(
            f"{source.name} leaves {learned.tokens} tokens to learn from, and the widest module has {widest} channels: "
            f"give {widest - learned.tokens} tokens more at least (10 times as many are better)."
        )


def _walk(
    model: nn.Module, read: Mapping[str, ReadUnits], learned: CalibrationSource, stage: str, budget_bytes: int,
    progress: Progress | None, outputs: OutputWeights | None = None,
) -> Iterator[tuple[ReadUnits, list[InputStatistics | None], Tensor | None]]:  # fmt: skip
    """Every module with what each of its matrices that read units was given, and how much its `outputs` count, a few
    modules at a time."""
    if not read:
        return
    of_down = {one.down: one for one in read.values()}
    groups = list(groups_within(watched_layers(model, list(of_down)), True, budget_bytes))
    for number, group in enumerate(groups):
        told = part_of(progress, stage, number, len(groups))
        paths = [one.path for one in group]
        counted = outputs.of(paths) if outputs is not None else {}
        statistics = by_reader(collect_inputs(model, learned, paths, budget_bytes=budget_bytes, progress=told))
        for path in paths:
            one = of_down[path]
            readers = [f"{path}.{one.down_name}[{expert}]" for expert in range(one.copies)] if one.stacked else [path]
            yield one, [statistics.get(reader) for reader in readers], counted.get(path)


def _sensitivities(
    model: nn.Module, channels: Mapping[str, InnerChannels], candidate: Candidate, held_out: HeldOut,
    progress: Progress | None,
) -> dict[str, float]:  # fmt: skip
    found = {}
    for number, path in enumerate(channels):
        with stood_in(model, _twins(channels, candidate, [path])):
            found[path] = held_out.divergence(model)
        if progress:
            progress("held-out text", (number + 1) / len(channels))
    return found


def _curve(one: InnerChannels, losses: Tensor, width: int, sensitivity: float, align: int) -> Curve:
    """Losses [copies, width] of a module in nats a token: those that go at `width` come to what was measured."""
    together = losses.sum(0)
    predicted = float(together[: one.width - width].sum())
    parameters = sum(weight.numel() for weight in one.weights.values()) // one.width
    return Curve(together * (max(sensitivity, 0.0) / predicted if predicted > 0 else 0.0), parameters, align)


def _orders(
    one: ReadUnits, seen: Sequence[InputStatistics | None], outputs: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The order in which units go, and their losses, [copies, width], in errors of outputs as these count;
    of an expert that no token reached, by the size of its weights, at no loss."""
    down = one.down_weights
    down = down if outputs is None else weighed(down, outputs.to(down.device))
    order = down.double().square().sum(1).view(len(down), -1, one.block).sum(2).argsort(1)
    losses = torch.zeros(order.shape, dtype=torch.float64, device=order.device)
    for places, grams in _stacks(seen, down):
        order[places], losses[places] = (
            removal_order(down[places], grams) if one.block == 1 else block_order(down[places], grams, one.block)
        )
    return order, losses


def _narrow_into(
    candidate: Candidate, one: ReadUnits, seen: Sequence[InputStatistics | None], order: Tensor, width: int
) -> None:
    kept, down = order[:, one.width - width :].sort(1).values, one.down_weights
    columns = one.columns(kept)
    narrow_down = down.gather(2, columns[:, None].expand(-1, down.shape[1], -1))
    for places, grams in _stacks(seen, down):
        narrow_down[places] = refitted(down[places], grams, columns[places])
    candidate.weights[one.path] = one.narrowed(kept, narrow_down)
    candidate.kept[one.path] = kept if one.stacked else kept[0]


def _stacks(seen: Sequence[InputStatistics | None], down: Tensor) -> Iterator[tuple[list[int], Tensor]]:
    """Gram matrices [b, n, n] of the copies that were given something, as many at a time as memory is meant for."""
    there = [(place, found.gram) for place, found in enumerate(seen) if found is not None and found.gram is not None]
    together = max(1, STACK_BYTES // (down.shape[-1] ** 2 * 8))
    for start in range(0, len(there), together):
        places, grams = zip(*there[start : start + together], strict=True)
        yield list(places), torch.stack(grams).to(down.device)
