"""`structured_pruning`: fewer channels, experts or heads, and what reads them refitted to make up for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.head_groups import KV_HEADS
from inference_pio.anatomy.mlp_channels import EXPERT_WIDTH, MLP, WIDTH_NAMES
from inference_pio.anatomy.prunable import Prunable
from inference_pio.anatomy.prunable_units import (
    CONFIGURED,
    is_channels,
    paths_of,
    prunable_units,
    told_counts,
    units_at,
)
from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.routed_experts import ROUTED, RoutedExperts
from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from inference_pio.calibration.by_weights import narrow_by_weights
from inference_pio.calibration.held_out import ONE_IN
from inference_pio.calibration.narrowed import MEASURED, UNIFORM, Narrowed, narrow
from inference_pio.calibration.source import calibration_source, token_windows
from inference_pio.contract.byte_size import in_words
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel, InvalidSetting, PlanError
from inference_pio.measure.target import max_positions
from inference_pio.sources.progress import share_bar
from inference_pio.undo.places import config_at, configs_of

CLAIMS = frozenset({"weights.shape"})
WINDOW, LEAST_WINDOW = 1024, 32
"""Tokens of a window of text: fewer where the text is short, since one window in eight is held out."""
EXPERTS_ALIGN = 8
"""torch's grouped product takes rows of experts that are multiples of 16 bytes."""
LONG_BYTES = 64 * 2**20
"""A model of more is told how far its pruning has come."""
SMALL_TEXT = [[1 + (place * place + row) % 96 for place in range(32)] for row in range(12)]
"""Tokens without a meaning that every small model knows."""
Unit = Literal["mlp", "expert_width", "experts", "kv_heads"]
ROLES = {MLP: "mlp", EXPERT_WIDTH: "experts", ROUTED: "experts", KV_HEADS: "attention"}
NAMES = {MLP: "inner channels", EXPERT_WIDTH: "inner channels of experts", ROUTED: "experts", KV_HEADS: "key heads"}


class StructuredPruningParameters(Settings):
    """`pruning_ratio` is the share of `units` that goes: inner channels of each MLP ("mlp") and of each expert
    ("expert_width"), whole "experts" of each mixture, or "kv_heads", key heads with the query heads that read them.
    Channels that stay are a multiple of `align`, so that matrix units are filled, in experts of 8 at least.

    `allocation` "measured" takes more channels from modules that lose little by it, told by held-out text, less from
    others, and `pruning_ratio` of all; "uniform" as much from each, so that the configuration can tell it to every
    reader. Learned from `tokens` tokens of `text`, of which the share `stray` is replaced by any others, so that what
    the text never says is not forgotten: an eighth by default, none where experts are narrowed. With `calibration`
    "none" what goes has the smallest weights, and nothing makes up for it. Nothing is done where the divergence on
    held-out text would be above `max_kl` nats a token. `targets` are roles or path patterns, `skip` path patterns. What
    reads channels makes up for those that go in its outputs, then in the whole model's stream, and so do results of
    attentions behind it, where held-out text loses less by that; `refit` "outputs" leaves it at the first.
    """

    pruning_ratio: float = Field(default=0.25, gt=0, lt=1)
    units: list[Unit] = Field(default=["mlp", "expert_width"], min_length=1)
    align: int = Field(default=64, ge=1)
    allocation: Literal["measured", "uniform"] = "measured"
    calibration: Literal["text", "none"] = "text"
    refit: Literal["outputs", "stream"] | None = None
    max_kl: float | None = Field(default=None, gt=0)
    targets: list[str] | None = None
    skip: list[str] = Field(default_factory=list)
    text: list[str] | list[list[int]] | None = None
    tokens: int = Field(default=32768, ge=1)
    stray: float | None = Field(default=None, ge=0, lt=1)

    @model_validator(mode="after")
    def _nothing_measured_without_a_text(self) -> Self:
        measures = self.allocation == MEASURED or self.max_kl is not None or self.refit == "stream"
        if self.calibration == "none" and measures:
            raise InvalidSetting(
                "calibration='none' leaves nothing to measure by: it goes with allocation='uniform' and "
                "refit='outputs', and without max_kl"
            )
        if self.calibration == "none" and self.stray:
            raise InvalidSetting("calibration='none' reads no text whose tokens stray could replace: leave stray out")
        return self


class StructuredPruning(OptimizationInterface):
    """Smaller matrices of the same kind: everything that runs the model runs it, with fewer bytes and operations."""

    name = "structured_pruning"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.STRUCTURE
    summary = "fewer channels, experts or heads, the layers behind refitted by least squares"
    exactness = "approximate"
    changes_state_dict = True
    Parameters: ClassVar[type[Settings]] = StructuredPruningParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {"align": 8, "allocation": "uniform", "text": SMALL_TEXT}

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self._narrowed: Narrowed | None = None

    def sites(self, model: nn.Module) -> Sequence[Site]:
        asked, chosen, roles = self.parameters, self._chosen, roles_of(model)
        shared = shared_weights(model)
        found = []
        for one in prunable_units(model, asked.units):
            if isinstance(one, tuple):
                found.append(Site(one[0], roles.get(one[0], "model"), CLAIMS, one[1]))
                continue
            skip = self._why_not(one, chosen) or why_shared(one.weights.values(), shared)
            if not skip and one.unit not in asked.units:
                skip = f"units={asked.units} leaves {one.unit} out"
            found.append(Site(one.path, one.unit, CLAIMS, skip, nbytes=one.nbytes))
        return _as_many_everywhere(model, asked.units, found)

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        there = _at(model, sites)
        widths = {path: self._width(one) for path, one in there.items()}
        uniform = self.parameters.allocation == UNIFORM
        told = {path: width for path, width in widths.items() if uniform or not is_channels(there[path])}
        return {
            "pruning_ratio": self.parameters.pruning_ratio, "widths": widths,
            "before": {path: one.width for path, one in there.items()},
            "configuration": told_counts(model, dict(configs_of(model)), told),
        }  # fmt: skip

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        for path, one in _at(model, sites).items():
            for name, weight in one.weights.items():
                if not torch.stack(weight.detach().aminmax()).isfinite().all():
                    raise InvalidModel(
                        f"{path}.{name} holds NaN or infinity: check the checkpoint; nothing was touched."
                    )

    @property
    def runs_the_model(self) -> bool:
        return bool(self.parameters.calibration != "none")

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        asked, there = self.parameters, _at(model, sites)
        if asked.calibration == "none":
            self._narrowed = narrow_by_weights(there, decision["widths"])
            return {**decision, "chosen": self._narrowed.to_json()}
        window = min(WINDOW, max_positions(model) or WINDOW, max(LEAST_WINDOW, asked.tokens // ONE_IN))
        source = calibration_source(model, token_windows(asked.text), tokens=asked.tokens, window=window)
        large = sum(parameter.nbytes for parameter in model.parameters()) > LONG_BYTES
        ratio = asked.pruning_ratio if asked.allocation == MEASURED else None
        with share_bar("choosing channels", large) as progress:
            align = {path: self._align(one) for path, one in there.items()}
            self._narrowed = found = narrow(
                model, there, decision["widths"], source, ratio=ratio, align=align, progress=progress,
                stream=None if asked.refit == "outputs" else self._may_be_fitted, stray=asked.stray,
            )  # fmt: skip
        divergence = found.taken.divergence
        if asked.max_kl is not None and divergence > asked.max_kl:
            self._narrowed = None
            raise PlanError(
                f"structured_pruning: with {asked.pruning_ratio:.0%} of its units gone the divergence on held-out "
                f"text is {divergence:.3g} nats a token, and max_kl is {asked.max_kl:g}: choose a smaller "
                "pruning_ratio. Nothing was touched."
            )
        return {**decision, "chosen": found.to_json()}

    def apply(self, model: nn.Module) -> nn.Module:
        made, self._narrowed = self._narrowed, None
        if lost := self._chosen.unmatched({site.path: ROLES.get(site.role, site.role) for site in self.sites(model)}):
            self.say(note=f"nothing in this model is meant by {', '.join(map(repr, lost))}.")
        decision = self.step.decision
        there = _at(model, self.step.sites)
        for path, one in there.items():
            width = _widths(decision)[path]
            for module, name, value in list(one.numbers(width)):
                self.journal.set(module, name, value)
            for name, weight in (made.taken.weights[path] if made is not None else one.first(width)).items():
                above, _, last = name.rpartition(".")
                self._put(one.module.get_submodule(above), last, weight)
        for path, weight in (made.taken.beside if made is not None else {}).items():
            self._put(model.get_submodule(path), "weight", weight)
        for key, value in decision["configuration"].items():
            where, _, name = key.rpartition(".")
            self.journal.set(config_at(model, where), name, value)
        if made is not None and made.taken.beside:
            self.say(note=f"{len(made.taken.beside)} results of attentions are fitted again to the whole stream.")
        self._tell(decision, {path: one.unit for path, one in there.items()})
        return model

    def _put(self, owner: Any, name: str, weight: torch.Tensor) -> None:
        if name in owner._buffers:
            self.journal.set(owner, name, weight)
            return
        self.journal.set(owner, name, nn.Parameter(weight, requires_grad=owner._parameters[name].requires_grad))
        if isinstance(owner, nn.Linear) and weight.dim() == 2:
            self.journal.set(owner, "out_features", weight.shape[0])
            self.journal.set(owner, "in_features", weight.shape[1])

    def _tell(self, decision: Mapping[str, Any], units: Mapping[str, str]) -> None:
        before, after = decision["before"], _widths(decision)
        for unit in dict.fromkeys(units.values()):
            paths = [path for path, kind in units.items() if kind == unit]
            counts = [_range([found[path] for path in paths]) for found in (before, after)]
            self.say(
                backend="smaller matrices",
                note=f"{NAMES[unit]} of {len(paths)} modules: {counts[0]} before, {counts[1]} now.",
            )
        if {MLP, EXPERT_WIDTH}.intersection(units.values()) and not any(
            key.endswith(WIDTH_NAMES) for key in decision["configuration"]
        ):
            self.say(
                note="the configuration keeps its widths, which not all modules share any more: save() keeps what was "
                "chosen; allocation='uniform' is for other readers of a checkpoint."
            )
        chosen = decision.get("chosen")
        if chosen is None:
            self.say(note="which units go is decided when it is applied, by the text that it learns from.")
            return
        if not chosen["held_out_divergence"]:
            self.say(note="what goes has the smallest weights, and no text has judged it (calibration='none').")
            return
        tried = _tried(chosen["held_out_divergence"])
        self.say(note=f"allocation {chosen['allocation']}; divergence on held-out text, in nats a token: {tried}.")
        if experts := chosen.get("experts"):
            how = f"{experts['criterion']}{', refitted' if experts['refitted'] else ''}"
            self.say(note=f"experts by {how}; alone: {_tried(experts['held_out_divergence'])}.")
        if reason := chosen.get("outputs_not_weighed"):
            self.say(note=f"all outputs of a layer count alike: {reason}")
        if nbytes := chosen.get("saved_on_host_bytes"):
            self.say(note=f"{in_words(nbytes)} that gradients needed waited on the host: the device had no room.")
        if reason := chosen.get("stream_not_fitted"):
            self.say(note=f"nothing is fitted to the whole model's stream: {reason}.")
        if stray := chosen.get("stray"):
            self.say(note=f"{stray:.1%} of the tokens learned from were replaced by others (stray).")
        if chosen["unseen_experts"]:
            self.say(note=f"{chosen['unseen_experts']} experts saw no token: their channels go by the size of weights.")

    @property
    def _chosen(self) -> Chosen:
        return Chosen(self.parameters.targets, self.parameters.skip)

    def _may_be_fitted(self, path: str) -> bool:
        """Whether the result of an attention may get other weights."""
        return self._chosen.why_not(path, "attention") is None

    def _align(self, one: Prunable) -> int:
        """Of what the units that stay are a multiple."""
        if not is_channels(one):
            return 1
        align: int = self.parameters.align
        return math.lcm(align, EXPERTS_ALIGN) if one.unit == EXPERT_WIDTH else align

    def _width(self, one: Prunable) -> int:
        """How many units stay where each module gives as much."""
        left = round(one.width * (1 - self.parameters.pruning_ratio), 6)
        return int(left // self._align(one)) * self._align(one)

    def _why_not(self, one: Prunable, chosen: Chosen) -> str | None:
        asked = self.parameters
        if reason := chosen.why_not(one.path, ROLES[one.unit]):
            return reason
        if any("forward" in module.__dict__ or hasattr(module, "parametrizations") for module in one.module.modules()):
            return "its forward or one of its weights is overridden"
        if not all(weight.is_floating_point() and weight.element_size() > 1 for weight in one.weights.values()):
            return "its weights are stored in fewer bits already"
        if one.unit == EXPERT_WIDTH and {EXPERT_WIDTH, ROUTED} <= set(asked.units):
            return "its experts go whole: prune their width in a step of its own, on what was saved"
        least = max(one.top_k, 2) if isinstance(one, RoutedExperts) else 1
        width, align, name = self._width(one), self._align(one), NAMES[one.unit].split(" of ")[0].removeprefix("inner ")
        if width < least:
            return (
                f"of its {one.width} {name} {asked.pruning_ratio:.0%} would go, and what is left is "
                f"{f'no multiple of align={align}' if is_channels(one) else f'fewer than {least}'}: choose a smaller "
                f"{'align or ' if is_channels(one) else ''}pruning_ratio"
            )
        return f"its {one.width} {name} stay with align={align}" if width >= one.width else None


def _at(model: nn.Module, sites: Sequence[Site]) -> dict[str, Prunable]:
    return units_at(model, [site.path for site in sites])


def _as_many_everywhere(model: nn.Module, kinds: Sequence[str], sites: list[Site]) -> list[Site]:
    """Sites of a kind of which all layers must have as many are left alone where one of them must be."""
    found = {site.path: site for site in sites}
    for kind in CONFIGURED.intersection(kinds):
        paths = paths_of(model, kind)
        left = next((found[path] for path in paths if found[path].skip), None)
        for path in paths:
            if left is not None and not found[path].skip:
                reason = f"all layers must have as many {NAMES[kind]}, and {left.path} keeps its own: {left.skip}"
                found[path] = dataclasses.replace(found[path], skip=reason)
    return list(found.values())


def _widths(decision: Mapping[str, Any]) -> dict[str, int]:
    """The widths that were chosen; before there were data to choose by, those that are foretold."""
    found: dict[str, int] = decision["chosen"]["widths"] if "chosen" in decision else decision["widths"]
    return found


def _tried(divergences: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in divergences.items())


def _range(widths: Sequence[int]) -> str:
    return f"{min(widths)}" if min(widths) == max(widths) else f"{min(widths)} to {max(widths)}"
