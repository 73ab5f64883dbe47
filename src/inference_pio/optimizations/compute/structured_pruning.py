"""`structured_pruning`: fewer inner channels in MLPs and experts, and what reads them refitted to make up for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.mlp_channels import EXPERT_WIDTH, WIDTH_NAMES, InnerChannels, inner_channels
from inference_pio.anatomy.roles import roles_of
from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from inference_pio.calibration.held_out import ONE_IN
from inference_pio.calibration.narrowed import MEASURED, UNIFORM, Narrowed, narrow
from inference_pio.calibration.source import calibration_source, token_windows
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel, PlanError
from inference_pio.measure.target import max_positions
from inference_pio.sources.progress import share_bar
from inference_pio.undo.places import configs_of

CLAIMS = frozenset({"weights.shape"})
WINDOW, LEAST_WINDOW = 1024, 32
"""Tokens of a window of text: fewer where the text is short, since one window in eight is held out."""
EXPERTS_ALIGN = 8
"""torch's grouped product takes rows of experts that are multiples of 16 bytes."""
LONG_BYTES = 64 * 2**20
"""A model of more is told how far its pruning has come."""
SMALL_TEXT = [[1 + (place * place + row) % 96 for place in range(32)] for row in range(12)]
"""Tokens without a meaning that every small model knows."""
Unit = Literal["mlp", "expert_width"]


class StructuredPruningParameters(Settings):
    """`pruning_ratio` is the share of inner channels that goes, of each MLP (`units`: "mlp") and of each expert
    ("expert_width"); what stays is a multiple of `align`, so that matrix units are filled, in experts of 8 at least.

    `allocation` "measured" takes more from modules that lose little by it, told by held-out text, less from others, and
    `pruning_ratio` of all; "uniform" as much from each, so that the configuration can tell it to every reader. Learned
    from `tokens` tokens of `text`. Nothing is done where the divergence on held-out text would be above `max_kl` nats a
    token. `targets` are roles or path patterns, `skip` path patterns.
    """

    pruning_ratio: float = Field(default=0.25, gt=0, lt=1)
    units: list[Unit] = Field(default=["mlp", "expert_width"], min_length=1)
    align: int = Field(default=64, ge=1)
    allocation: Literal["measured", "uniform"] = "measured"
    max_kl: float | None = Field(default=None, gt=0)
    targets: list[str] | None = None
    skip: list[str] = Field(default_factory=list)
    text: list[str] | list[list[int]] | None = None
    tokens: int = Field(default=32768, ge=1)


class StructuredPruning(OptimizationInterface):
    """Smaller matrices of the same kind: everything that runs the model runs it, with fewer bytes and operations."""

    name = "structured_pruning"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.STRUCTURE
    summary = "fewer inner channels in MLPs and experts, the layers behind refitted by least squares"
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
        for one in inner_channels(model):
            if isinstance(one, tuple):
                found.append(Site(one[0], roles.get(one[0], "mlp"), CLAIMS, one[1]))
                continue
            nbytes = sum(weight.nbytes for weight in one.weights.values())
            skip = self._why_not(one, chosen) or why_shared(one.weights.values(), shared)
            if not skip and one.unit not in asked.units:
                skip = f"units={asked.units} leaves {one.unit} out"
            found.append(Site(one.path, one.unit, CLAIMS, skip, nbytes=nbytes))
        return found

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        there = _at(model, sites)
        widths = {path: self._width(one) for path, one in there.items()}
        return {
            "pruning_ratio": self.parameters.pruning_ratio, "widths": widths,
            "before": {path: one.width for path, one in there.items()},
            "configuration": _told_widths(model, widths) if self.parameters.allocation == UNIFORM else {},
        }  # fmt: skip

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        for path, one in _at(model, sites).items():
            for name, weight in one.weights.items():
                if not torch.stack(weight.detach().aminmax()).isfinite().all():
                    raise InvalidModel(
                        f"{path}.{name} holds NaN or infinity: check the checkpoint; nothing was touched."
                    )

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        asked = self.parameters
        window = min(WINDOW, max_positions(model) or WINDOW, max(LEAST_WINDOW, asked.tokens // ONE_IN))
        source = calibration_source(model, token_windows(asked.text), tokens=asked.tokens, window=window)
        large = sum(parameter.nbytes for parameter in model.parameters()) > LONG_BYTES
        ratio = asked.pruning_ratio if asked.allocation == MEASURED else None
        with share_bar("choosing channels", large) as progress:
            there = _at(model, sites)
            align = {path: self._align(one) for path, one in there.items()}
            self._narrowed = found = narrow(
                model, there, decision["widths"], source, ratio=ratio, align=align, progress=progress
            )
        divergence = found.taken.divergence
        if asked.max_kl is not None and divergence > asked.max_kl:
            self._narrowed = None
            raise PlanError(
                f"structured_pruning: with {asked.pruning_ratio:.0%} of the channels gone the divergence on held-out "
                f"text is {divergence:.3g} nats a token, and max_kl is {asked.max_kl:g}: choose a smaller "
                "pruning_ratio. Nothing was touched."
            )
        return {**decision, "chosen": found.to_json()}

    def apply(self, model: nn.Module) -> nn.Module:
        made, self._narrowed = self._narrowed, None
        if lost := self._chosen.unmatched({site.path: _role(site.role) for site in self.sites(model)}):
            self.say(note=f"nothing in this model is meant by {', '.join(map(repr, lost))}.")
        decision = self.step.decision
        for path, one in _at(model, self.step.sites).items():
            width = _widths(decision)[path]
            weights = made.taken.weights[path] if made is not None else _first(one, width)
            for name, weight in weights.items():
                above, _, last = name.rpartition(".")
                owner: Any = one.module.get_submodule(above)
                old = owner._parameters[last]
                self.journal.set(owner, last, nn.Parameter(weight, requires_grad=old.requires_grad))
                if isinstance(owner, nn.Linear):
                    self.journal.set(owner, "out_features", weight.shape[0])
                    self.journal.set(owner, "in_features", weight.shape[1])
            for name in WIDTH_NAMES:
                if getattr(one.module, name, None) == one.width:
                    self.journal.set(one.module, name, width)
        for key, value in decision["configuration"].items():
            where, _, name = key.rpartition(".")
            self.journal.set(dict(configs_of(model))[where], name, value)
        self._tell(decision)
        return model

    def _tell(self, decision: Mapping[str, Any]) -> None:
        before, after = (list(found.values()) for found in (decision["before"], _widths(decision)))
        self.say(
            backend="smaller matrices",
            note=f"inner channels of {len(after)} modules: {_range(before)} before, {_range(after)} now.",
        )
        if not decision["configuration"]:
            self.say(
                note="the configuration keeps its widths, which not all modules share any more: save() keeps what was "
                "chosen; allocation='uniform' is for other readers of a checkpoint."
            )
        chosen = decision.get("chosen")
        if chosen is None:
            self.say(note="which channels go is decided when it is applied, by the text that it learns from.")
            return
        tried = ", ".join(f"{name} {value:.3g}" for name, value in chosen["held_out_divergence"].items())
        self.say(note=f"allocation {chosen['allocation']}; divergence on held-out text, in nats a token: {tried}.")
        if chosen["unseen_experts"]:
            self.say(note=f"{chosen['unseen_experts']} experts saw no token: their channels go by the size of weights.")

    @property
    def _chosen(self) -> Chosen:
        return Chosen(self.parameters.targets, self.parameters.skip)

    def _align(self, one: InnerChannels) -> int:
        align: int = self.parameters.align
        return math.lcm(align, EXPERTS_ALIGN) if one.stacked else align

    def _width(self, one: InnerChannels) -> int:
        """How many channels stay where each module gives as much."""
        left = round(one.width * (1 - self.parameters.pruning_ratio), 6)
        return int(left // self._align(one)) * self._align(one)

    def _why_not(self, one: InnerChannels, chosen: Chosen) -> str | None:
        asked = self.parameters
        if reason := chosen.why_not(one.path, _role(one.unit)):
            return reason
        if any("forward" in module.__dict__ or hasattr(module, "parametrizations") for module in one.module.modules()):
            return "its forward or one of its weights is overridden"
        if not all(weight.is_floating_point() and weight.element_size() > 1 for weight in one.weights.values()):
            return "its weights are stored in fewer bits already"
        width, align = self._width(one), self._align(one)
        if width == 0:
            return (
                f"of its {one.width} channels {asked.pruning_ratio:.0%} would go, and what is left is no multiple of "
                f"align={align}: choose a smaller align or pruning_ratio"
            )
        return f"its {one.width} channels stay with align={align}" if width >= one.width else None


def _role(unit: str) -> str:
    return "experts" if unit == EXPERT_WIDTH else unit


def _at(model: nn.Module, sites: Sequence[Site]) -> dict[str, InnerChannels]:
    wanted = {site.path for site in sites}
    found = (one for one in inner_channels(model) if isinstance(one, InnerChannels))
    return {one.path: one for one in found if one.path in wanted}


def _widths(decision: Mapping[str, Any]) -> dict[str, int]:
    """The widths that were chosen; before there were data to choose by, those that are foretold."""
    found: dict[str, int] = decision["chosen"]["widths"] if "chosen" in decision else decision["widths"]
    return found


def _range(widths: Sequence[int]) -> str:
    return f"{min(widths)}" if min(widths) == max(widths) else f"{min(widths)} to {max(widths)}"


def _first(one: InnerChannels, width: int) -> dict[str, torch.Tensor]:
    """The shapes that a module will have; its own where a configuration has told the new width already."""
    kept = torch.arange(width, device=one.down_weights.device).expand(one.copies, -1)
    return one.narrowed(kept, one.down_weights[..., :width])


def _told_widths(model: nn.Module, widths: Mapping[str, int]) -> dict[str, int]:
    """What configurations are to tell: a width that every module which had it has changed, and to one new one."""
    after: dict[int, set[int]] = {}
    for one in inner_channels(model):
        if isinstance(one, InnerChannels):
            after.setdefault(one.width, set()).add(widths.get(one.path, one.width))
    told = {}
    for name, config in configs_of(model):
        for key in WIDTH_NAMES:
            value = vars(config).get(key)
            if isinstance(value, int) and len(new := after.get(value, set())) == 1 and value not in new:
                told[f"{name}.{key}"] = next(iter(new))
    return told
