"""Linear layers in two factors: by their inputs and by what outputs do, ranks by loss, judged by held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.side_by_side import SideBySide
from inference_pio.calibration.factors import Factors, factors_at, layers_of
from inference_pio.calibration.forward import Progress
from inference_pio.calibration.groups import groups_within
from inference_pio.calibration.held_out import HeldOut, parted
from inference_pio.calibration.input_pass import BUDGET_BYTES, collect_inputs, watched_layers
from inference_pio.calibration.output_pass import OutputWeights
from inference_pio.calibration.ranks import WHOLE, Rank, allocate_ranks, factor_numbers, ranks_of
from inference_pio.calibration.refit import refit
from inference_pio.calibration.residual import Residual
from inference_pio.calibration.rounding import part_of
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.kernels.low_rank import Spectrum, shrunk, spectrum

UNIFORM, FORETOLD, MEASURED = "uniform", "foretold", "measured"
REFITTED = "refitted"
FEWEST_TOKENS = 4
"""A text must hold a token for so many inputs of the widest layer: what is doubtful is drawn towards the mean."""


@dataclass
class Candidate:
    """One way to decompose all layers: factors by the name of their group, and the divergence on held-out text."""

    factors: dict[str, Factors] = field(default_factory=dict)
    divergence: float = float("inf")


@dataclass
class Decomposed:
    """The candidate that was taken, and how it was come by."""

    taken: Candidate
    allocation: str
    divergences: dict[str, float]
    ranks: dict[str, int]
    foretold: dict[str, float]
    """By group, what its rank loses in nats a token (of outputs that are no logits: squared), as their spectra say."""
    source: dict[str, Any]
    outputs: str | None = None
    """Why outputs could not be weighed; None where they were."""
    saved_bytes: int = 0
    """What gradients needed and the device had no room for: it waited on the host."""

    def to_json(self) -> dict[str, Any]:
        return {
            "allocation": self.allocation, "ranks": self.ranks, "held_out_divergence": self.divergences,
            "foretold": self.foretold, "source": self.source, "outputs_not_weighed": self.outputs,
            **({"saved_on_host_bytes": self.saved_bytes} if self.saved_bytes else {}),
        }  # fmt: skip


def decompose(
    model: nn.Module, groups: Sequence[SideBySide], ranks: Mapping[str, int], source: CalibrationSource, *,
    pivots: bool = True, ratio: float = 0.0, allocations: Sequence[str] = (), refits: bool = False,
    align: Mapping[str, int] | None = None, second: float = 0, residual: Residual | None = None,
    progress: Progress | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Decomposed:  # fmt: skip
    """Two factors of `ranks[name]` for each group, or of ranks with which `ratio` of all numbers goes where it costs
    least, by each of the `allocations`, a second product counting as `second` numbers; held-out text judges which is
    taken, and whether refitted ones are. With a `residual` the factors are of what its codes leave, and stand beside
    these.

    Nothing of the model is edited. Raises InvalidSetting for a text that is too short to learn from.
    """
    learned, judged = parted(source)
    _check_length(source, learned, groups)
    held_out = HeldOut(model, judged)
    found = {UNIFORM: Candidate()}
    curves: dict[str, list[Rank]] = {}
    kept: dict[str, Spectrum] = {}
    walk = _Walk(model, groups, learned, budget_bytes, progress, residual)
    keeps = sum(_spectrum_bytes(one) for one in groups) <= budget_bytes
    for one, parts in walk.over("calibration"):
        found[UNIFORM].factors[one.name] = factors_at(parts, ranks[one.name], pivots, one.weight(model))
        curves[one.name] = _curve(one, parts, pivots, (align or {}).get(one.name, 1), walk.beside(one), second)
        if allocations and keeps:
            kept[one.name] = parts
    _judge(model, groups, found[UNIFORM], held_out, residual)
    for allocation in allocations if len(groups) > 1 else ():
        if allocation == MEASURED or walk.weights.why_not:
            curves = _scaled(model, groups, curves, _best(found)[1], held_out, residual)
        ranks = allocate_ranks(curves, (1 - ratio) * sum(one.numbers for one in groups))
        made = found[allocation] = Candidate()
        for one, parts in ((one, kept[one.name]) for one in groups) if keeps else walk.over("factors"):
            if ranks[one.name] != WHOLE:
                made.factors[one.name] = factors_at(parts, ranks[one.name], pivots, one.weight(model))
        _judge(model, groups, made, held_out, residual)
    name, taken = _best(found)
    if refits:
        made = Candidate(refit(model, groups, taken.factors, learned, progress=progress))
        _judge(model, groups, made, held_out, residual)
        found[REFITTED] = made
        taken = min(taken, made, key=lambda candidate: candidate.divergence)
    final = {one.name: taken.factors[one.name].rank if one.name in taken.factors else WHOLE for one in groups}
    return Decomposed(
        taken, name, {how: candidate.divergence for how, candidate in found.items()}, final,
        {one.name: _loss_at(curves[one.name], final[one.name]) for one in groups},
        {"name": source.name, "tokens": learned.tokens, "held_out_tokens": judged.tokens, "sha256": source.digest},
        walk.weights.why_not, walk.weights.saved.nbytes,
    )  # fmt: skip


def _judge(
    model: nn.Module, groups: Sequence[SideBySide], candidate: Candidate, held_out: HeldOut, residual: Residual | None
) -> None:
    with stood_in(model, layers_of(model, groups, candidate.factors, residual)):
        divergence = held_out.divergence(model)
    candidate.divergence = divergence if math.isfinite(divergence) else math.inf


def _best(found: Mapping[str, Candidate]) -> tuple[str, Candidate]:
    return min(found.items(), key=lambda item: item[1].divergence)


def decompose_weights(
    model: nn.Module, groups: Sequence[SideBySide], ranks: Mapping[str, int], *, pivots: bool = True,
    residual: Residual | None = None,
) -> Decomposed:  # fmt: skip
    """The same by the weights alone: what plain singular values keep."""
    found = Candidate()
    for one in groups:
        weight = residual.left(model, one).to(one.weight(model).dtype) if residual else one.weight(model)
        found.factors[one.name] = factors_at(spectrum(weight), ranks[one.name], pivots, weight)
    return Decomposed(found, UNIFORM, {}, dict(ranks), {}, {})


def _check_length(source: CalibrationSource, learned: CalibrationSource, groups: Sequence[SideBySide]) -> None:
    widest = max(one.inputs for one in groups)
    wanted = -(-widest // FEWEST_TOKENS)
    if source.tokens and learned.tokens < wanted:
        raise InvalidSetting(
            f"{source.name} leaves {learned.tokens} tokens to learn from, and the widest layer has {widest} inputs: "
            f"give {wanted - learned.tokens} tokens more at least (40 times as many are better)."
        )


class _Walk:
    """Every group with its spectrum, as many groups at a time as the budget has room for."""

    def __init__(
        self, model: nn.Module, groups: Sequence[SideBySide], learned: CalibrationSource, budget_bytes: int,
        progress: Progress | None, residual: Residual | None,
    ) -> None:  # fmt: skip
        self.residual = residual
        self.model, self.learned, self.budget_bytes, self.progress = model, learned, budget_bytes, progress
        self.weights = OutputWeights(model, learned)
        self._named = {one.name: one for one in groups}

    def over(self, stage: str) -> Iterator[tuple[SideBySide, Spectrum]]:
        model, learned = self.model, self.learned
        together = list(groups_within(watched_layers(model, list(self._named)), True, self.budget_bytes))
        for number, group in enumerate(together):
            told = part_of(self.progress, stage, number, len(together))
            ones = [self._named[watched.path] for watched in group]
            outputs = self.weights.of([path for one in ones for path in one.paths])
            inputs = collect_inputs(
                model, learned, [one.name for one in ones], budget_bytes=self.budget_bytes, progress=told
            )
            for statistics in inputs:
                assert statistics.gram is not None  # the pass was asked for it
                if not statistics.gram.isfinite().all():
                    raise InvalidModel(
                        f"{statistics.readers[0]} is given NaN or infinity on {learned.name}: check the checkpoint, "
                        "its embeddings and norms too. Nothing was touched."
                    )
                mean = shrunk(statistics.gram / max(statistics.count, 1), statistics.count)
                for path in statistics.readers:
                    one = self._named[path]
                    yield one, self._spectrum(one, mean, outputs)

    def _spectrum(self, one: SideBySide, mean: Tensor, outputs: Mapping[str, Tensor]) -> Spectrum:
        weight = self.residual.left(self.model, one) if self.residual else one.weight(self.model)
        if self.weights.why_not is not None:
            return spectrum(weight, mean)
        return spectrum(weight, mean, _weights_of_outputs([outputs.get(path) for path in one.paths], one, weight))

    def beside(self, one: SideBySide) -> float:
        """As how many numbers the codes beside its factors count."""
        return self.residual.numbers(self.model, one) if self.residual else 0


def _weights_of_outputs(found: Sequence[Tensor | None], one: SideBySide, like: Tensor) -> Tensor:
    """How much the outputs of layers one above the other count; those that nothing depends on, not at all."""
    given = [
        torch.zeros(width, dtype=torch.float64, device=like.device) if part is None else part
        for part, width in zip(found, one.outputs, strict=True)
    ]
    if any(part.dim() == 1 for part in given):
        return torch.cat([part if part.dim() == 1 else part.diagonal() for part in given])
    whole: Tensor = torch.block_diag(*given)  # type: ignore[no-untyped-call]
    return whole


def _curve(one: SideBySide, parts: Spectrum, pivots: bool, align: int, beside: float, second: float) -> list[Rank]:
    """What each rank loses, with the matrix as it is as one way more."""
    rows = sum(one.outputs)
    squares = parts.values.square()
    tails = (0.5 * (squares.sum() - squares.cumsum(0))).clamp(min=0).tolist()
    ways = [
        Rank(rank, factor_numbers(rows, one.inputs, rank, pivots) + beside, tails[rank - 1], second)
        for rank in ranks_of(rows, one.inputs, align, pivots, beside)
    ]
    return [*ways, Rank(WHOLE, one.numbers)]


def _loss_at(ways: Sequence[Rank], rank: int) -> float:
    return next((way.loss for way in ways if way.rank == rank), 0.0)


def _scaled(
    model: nn.Module, groups: Sequence[SideBySide], curves: Mapping[str, list[Rank]], candidate: Candidate,
    held_out: HeldOut, residual: Residual | None,
) -> dict[str, list[Rank]]:  # fmt: skip
    """Losses by what each group alone was measured to lose in a candidate: what is foretold holds for small errors."""
    found = dict(curves)
    for one in groups:
        if (made := candidate.factors.get(one.name)) is None:
            continue
        with stood_in(model, layers_of(model, [one], {one.name: made}, residual)):
            divergence = max(held_out.divergence(model), 0.0)
        foretold = _loss_at(curves[one.name], made.rank)
        share = divergence / foretold if foretold else 0.0
        found[one.name] = [replace(way, loss=way.loss * share) for way in curves[one.name]]
    return found


def _spectrum_bytes(one: SideBySide) -> int:
    rows = sum(one.outputs)
    return 8 * min(rows, one.inputs) * (rows + one.inputs)
