"""`tensor_decomposition`: matrices as products of two smaller ones, with ranks where they cost the model least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.factorable import factorable_sites
from inference_pio.anatomy.side_by_side import SideBySide, side_by_side
from inference_pio.calibration.decomposed import FORETOLD, MEASURED, UNIFORM, Decomposed, decompose, decompose_weights
from inference_pio.calibration.factors import factors_to_come, layers_of
from inference_pio.calibration.held_out import ONE_IN
from inference_pio.calibration.ranks import WHOLE, align_of, factor_numbers, rank_at, second_product, why_no_faster
from inference_pio.calibration.residual import ALIGN as ALIGN_BESIDE_CODES
from inference_pio.calibration.residual import Residual
from inference_pio.calibration.source import calibration_source, token_windows
from inference_pio.contract.byte_size import in_words
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel, PlanError
from inference_pio.formats.factored_conv import FactoredConv, core_channels, why_no_core
from inference_pio.measure.target import max_positions, vocab_size
from inference_pio.sources.progress import share_bar

CLAIMS = frozenset({"weights.shape"})
STORED = frozenset({"weights.storage"})
"""What is claimed too, where codes stand beside the factors."""
WINDOW, LEAST_WINDOW = 1024, 32
"""Tokens of a window of text: fewer where the text is short, since one window in eight is held out."""
ALLOCATIONS = {UNIFORM: (), FORETOLD: (FORETOLD,), MEASURED: (FORETOLD, MEASURED)}
"""What is tried beside equal shares."""
LONG_BYTES = 64 * 2**20
"""A model of more is told how far its decomposition has come."""
PIVOTED = "pivoted"
UNJUDGED = "no held-out text judges it, and max_kl asks for that"


class TensorDecompositionParameters(Settings):
    """`decomposition_ratio` is the share of the numbers in linear layers that goes.

    Of a "pivoted" product a part of one factor need not be kept, so that the same numbers hold a higher rank; a "plain"
    one is two matrices and nothing else. With a `residual`, int8 or int4 codes keep the weights and factors stand for
    what these miss; then the share is of their bytes. Ranks are multiples of `align` (64, less of small matrices). With
    `allocation` "foretold" they are chosen by what they cost as spectra say, with "measured" also as held-out text
    says; "uniform" takes the same share of each. `refit` lets layers make up for what those before them lose. Learned
    from `tokens` tokens of `text`; with `calibration` "none", and on models that are given no tokens, by the weights
    alone. Nothing is done where the divergence on held-out text would be above `max_kl` nats a token, nor to what
    held-out text does not judge. `targets` are roles or path patterns, `skip` path patterns; `refuse_slower` leaves
    matrices alone that are too small to become faster.
    """

    decomposition_ratio: float = Field(default=0.2, ge=0.1, lt=1)
    form: Literal["pivoted", "plain"] = "pivoted"
    residual: Literal["int8", "int4"] | None = None
    align: int | None = Field(default=None, ge=1)
    allocation: Literal["measured", "foretold", "uniform"] = "measured"
    refit: bool = False
    calibration: Literal["text", "none"] = "text"
    max_kl: float | None = Field(default=None, gt=0)
    targets: list[str] | None = None
    skip: list[str] = Field(default_factory=list)
    refuse_slower: bool = True
    text: list[str] | list[list[int]] | None = None
    tokens: int = Field(default=32768, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> TensorDecompositionParameters:
        asked = {"max_kl": self.max_kl is not None, "refit": self.refit, "text": self.text is not None}
        if self.calibration == "none" and (names := [name for name, given in asked.items() if given]):
            raise ValueError(f"calibration='none' reads no text, which is what {' and '.join(names)} go by")
        if self.residual and self.refit:
            raise ValueError(
                "refit fits factors that stand alone, and with a residual codes stand beside them: drop one"
            )
        return self


class TensorDecomposition(OptimizationInterface):
    """Layers of one input share the factor that reads it; whatever comes later treats both factors as linear layers."""

    name = "tensor_decomposition"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.STRUCTURE
    summary = "linear layers in two factors, ranks chosen by what they cost the model's answers; convolutions in three"
    exactness = "approximate"
    changes_state_dict = True
    Parameters: ClassVar[type[Settings]] = TensorDecompositionParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {
        "allocation": "uniform", "calibration": "none", "refuse_slower": False,
        "targets": ["attention.qkv", "mlp.down", "unknown"],
    }  # fmt: skip

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self._found: Decomposed | None = None

    def sites(self, model: nn.Module) -> Sequence[Site]:
        asked = self.parameters
        claims = CLAIMS | STORED if asked.residual else CLAIMS
        found = list(factorable_sites(model, Chosen(asked.targets, asked.skip), claims))
        skips: dict[str, str] = {}
        bound, learns = self.parameters.max_kl is not None, self._learns(model)
        for one in _groups(model, found):
            if reason := UNJUDGED if bound and not learns else self._why_not(model, one):
                skips |= dict.fromkeys(one.paths, reason)
        for path, conv in _convolutions(model, found).items():
            codes = "convolutions have no codes beside their factors" if asked.residual else None
            if reason := codes or self._why_no_conv(conv) or (UNJUDGED if bound else None):
                skips[path] = reason
        return [
            Site(site.path, site.role, site.claims, skips[site.path]) if site.path in skips else site for site in found
        ]

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        asked = self.parameters
        groups, convolutions = _groups(model, sites), _convolutions(model, sites)
        return {
            "decomposition_ratio": asked.decomposition_ratio, "form": asked.form, "residual": asked.residual,
            "learns": self._learns(model),
            "ranks": {one.name: self._rank(model, one) for one in groups},
            "together": {one.name: list(one.paths) for one in groups},
            "numbers": sum(one.numbers for one in groups),
            "convolutions": {path: self._channels(conv) for path, conv in convolutions.items()},
        }  # fmt: skip

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        for site in sites:
            for name, weight in model.get_submodule(site.path).named_parameters():
                if not torch.stack(weight.detach().aminmax()).isfinite().all():
                    raise InvalidModel(
                        f"{site.path}.{name} holds NaN or infinity: check the checkpoint; nothing was touched."
                    )

    @property
    def runs_the_model(self) -> bool:
        return bool(self.parameters.calibration != "none")

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        asked, groups = self.parameters, _groups(model, sites)
        large = sum(parameter.nbytes for parameter in model.parameters()) > LONG_BYTES
        with share_bar("decomposing layers", large) as progress:
            if not decision["learns"] or not groups:
                self._found = decompose_weights(
                    model, groups, decision["ranks"], pivots=asked.form == PIVOTED, residual=self._residual
                )
                return decision
            window = min(WINDOW, max_positions(model) or WINDOW, max(LEAST_WINDOW, asked.tokens // ONE_IN))
            self._found = found = decompose(
                model, groups, decision["ranks"],
                calibration_source(model, token_windows(asked.text), tokens=asked.tokens, window=window),
                pivots=asked.form == PIVOTED, align={one.name: self._align(one) for one in groups},
                ratio=asked.decomposition_ratio, allocations=ALLOCATIONS[asked.allocation], refits=asked.refit,
                second=self._second(model, groups), residual=self._residual, progress=progress,
            )  # fmt: skip
        divergence = found.taken.divergence
        if not math.isfinite(divergence):
            self._found = None
            raise PlanError(
                "tensor_decomposition: behind two factors the model's answers to held-out text are no numbers, as its "
                "dtype does not hold them. Nothing was touched."
            )
        if asked.max_kl is not None and divergence > asked.max_kl:
            self._found = None
            raise PlanError(
                f"tensor_decomposition: with {asked.decomposition_ratio:.0%} of the numbers gone the divergence on "
                f"held-out text is {divergence:.3g} nats a token, and max_kl is {asked.max_kl:g}: choose a smaller "
                "decomposition_ratio. Nothing was touched."
            )
        return {**decision, "chosen": found.to_json()}

    def apply(self, model: nn.Module) -> nn.Module:
        made, self._found = self._found, None
        places = {site.path: site.role for site in factorable_sites(model, Chosen(), CLAIMS)}
        if lost := Chosen(self.parameters.targets, self.parameters.skip).unmatched(places):
            self.say(note=f"nothing in this model is meant by {', '.join(map(repr, lost))}.")
        decision, groups = self.step.decision, _groups(model, self.step.sites)
        pivots, ranks = decision["form"] == PIVOTED, _ranks(decision)
        factors = made.taken.factors if made else factors_to_come(model, groups, ranks, pivots)
        left = sum(self._numbers(model, one, ranks[one.name]) for one in groups)
        for path, layer in layers_of(model, groups, factors, self._residual).items():
            self.journal.replace(model.get_submodule(path), layer)
        for path, (outputs, inputs) in decision["convolutions"].items():
            conv: Any = model.get_submodule(path)
            self.journal.replace(conv, FactoredConv.from_conv(conv, (outputs, inputs)))
        self._tell(groups, decision, left)
        return model

    def _tell(self, groups: Sequence[SideBySide], decision: Mapping[str, Any], left: float) -> None:
        ranks = _ranks(decision)
        taken = [one for one in groups if ranks[one.name] != WHOLE]
        self.say(backend="factors")
        if convolutions := len(decision["convolutions"]):
            self.say(note=f"{convolutions} convolutions in three, by their kernels alone.")
        if not groups:
            return
        codes = f" beside {decision['residual']} codes" if decision["residual"] else ""
        self.say(
            note=f"{len(taken)} inputs' matrices in two factors{codes}, {len(groups) - len(taken)} as they were: "
            f"{1 - left / decision['numbers']:.1%} of their {'bytes' if codes else 'numbers'} are gone.",
        )
        aligned = sorted({self._align(one) for one in groups})
        if self.parameters.align is None and aligned[0] < align_of(2**20, 2**20):
            self.say(note=f"small matrices: ranks are multiples of {aligned[0]}.")
        if not decision["learns"]:
            self.say(note="chosen by the weights alone, which loses more: give text that the model is to read.")
        elif (chosen := decision.get("chosen")) is None:
            self.say(note="ranks are decided when it is applied, by the text that it learns from.")
        else:
            tried = ", ".join(f"{name} {value:.3g}" for name, value in chosen["held_out_divergence"].items())
            self.say(note=f"allocation {chosen['allocation']}; divergence on held-out text, in nats a token: {tried}.")
            if reason := chosen["outputs_not_weighed"]:
                self.say(note=f"all outputs of a layer count alike: {reason}")
            if nbytes := chosen.get("saved_on_host_bytes"):
                self.say(note=f"{in_words(nbytes)} that gradients needed waited on the host: the device had no room.")

    def _learns(self, model: nn.Module) -> bool:
        return bool(self.parameters.calibration == "text" and vocab_size(model) is not None)

    @property
    def _residual(self) -> Residual | None:
        return Residual(self.parameters.residual) if self.parameters.residual else None

    def _align(self, one: SideBySide) -> int:
        found = align_of(sum(one.outputs), one.inputs, self.parameters.align)
        return min(found, ALIGN_BESIDE_CODES) if self._residual and self.parameters.align is None else found

    def _rank(self, model: nn.Module, one: SideBySide) -> int | None:
        asked = self.parameters
        rows, pivots, beside = sum(one.outputs), asked.form == PIVOTED, self._beside(model, one)
        return rank_at(rows, one.inputs, asked.decomposition_ratio, self._align(one), pivots, beside)

    def _second(self, model: nn.Module, groups: Sequence[SideBySide]) -> float:
        """As how many numbers a second product counts, where what is no faster is refused."""
        each: Any = model.get_submodule(groups[0].name).weight
        return second_product(self.device, each.element_size()) if self.parameters.refuse_slower else 0

    def _beside(self, model: nn.Module, one: SideBySide) -> float:
        """As how many numbers the codes beside its factors count."""
        if self._residual is None or self._residual.why_not(one.inputs):
            return 0
        return self._residual.numbers(model, one)

    def _numbers(self, model: nn.Module, one: SideBySide, rank: int) -> float:
        """How many numbers it takes at a rank."""
        if rank == WHOLE:
            return one.numbers
        factors = factor_numbers(sum(one.outputs), one.inputs, rank, self.parameters.form == PIVOTED)
        return factors + self._beside(model, one)

    def _channels(self, conv: Any) -> list[int] | None:
        align = align_of(conv.out_channels, conv.in_channels, self.parameters.align)
        found = core_channels(conv, self.parameters.decomposition_ratio, align)
        return None if found is None else list(found)

    def _why_no_conv(self, conv: Any) -> str | None:
        asked = self.parameters
        if reason := why_no_core(conv):
            return reason
        if self._channels(conv) is None:
            align = align_of(conv.out_channels, conv.in_channels, asked.align)
            return f"no core of {align} channels or a multiple leaves {1 - asked.decomposition_ratio:.0%} of its kernel"
        saved = int(asked.decomposition_ratio * conv.weight.nbytes)
        return why_no_faster(saved, self.device) if asked.refuse_slower else None

    def _why_not(self, model: nn.Module, one: SideBySide) -> str | None:
        asked = self.parameters
        if self._residual and (reason := self._residual.why_not(one.inputs)):
            return reason
        if (rank := self._rank(model, one)) is None:
            beside = f" beside {asked.residual} codes" if asked.residual else ""
            return (
                f"no rank that is a multiple of {self._align(one)} leaves{beside} {1 - asked.decomposition_ratio:.0%} "
                f"of {sum(one.outputs)} x {one.inputs} numbers: choose a smaller align or decomposition_ratio"
            )
        if not asked.refuse_slower:
            return None
        each: Any = model.get_submodule(one.name).weight
        saved = (one.numbers - self._numbers(model, one, rank)) * each.element_size()
        return why_no_faster(int(saved), self.device)


def _groups(model: nn.Module, sites: Sequence[Site]) -> list[SideBySide]:
    others = _convolutions(model, sites)
    return side_by_side(model, [site.path for site in sites if site.acts and site.path not in others])


def _convolutions(model: nn.Module, sites: Sequence[Site]) -> dict[str, nn.Module]:
    modules = {site.path: model.get_submodule(site.path) for site in sites if site.acts}
    return {path: module for path, module in modules.items() if isinstance(module, nn.modules.conv._ConvNd)}


def _ranks(decision: Mapping[str, Any]) -> dict[str, int]:
    """The ranks that were chosen; before there were data to choose by, those that are foretold."""
    found: dict[str, int] = decision["chosen"]["ranks"] if "chosen" in decision else decision["ranks"]
    return found
