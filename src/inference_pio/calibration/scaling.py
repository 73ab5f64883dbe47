"""Weights rounded after their channels were scaled (AWQ), kept layer by layer where held-out text bears it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.calibration.expert_inputs import DOWN, GATE_UP
from inference_pio.calibration.fold_check import by_layer, holding, scales_of_modules
from inference_pio.calibration.folds import Fold, find_folds
from inference_pio.calibration.forward import Progress
from inference_pio.calibration.groups import groups_within
from inference_pio.calibration.held_out import HeldOut, parted
from inference_pio.calibration.input_pass import BUDGET_BYTES, collect_inputs, watched_layers
from inference_pio.calibration.input_statistics import InputStatistics
from inference_pio.calibration.rounding import Form, Rounded, by_reader, choose_by_layer, part_of
from inference_pio.calibration.scale_search import Found, Reader, search_scales
from inference_pio.calibration.scaled_layer import held_scales, scaled
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import InvalidSetting
from inference_pio.formats.compressed_module import CompressedModule

SAME = 0.01
"""Answers are the same within this share of what rounding to nearest changes: products may choose their kernels by
where weights lie."""
NO_GAIN = "no scale that was tried lessens what rounding changes"
Statistics = Mapping[str, InputStatistics]


def scale_calibrated(
    model: nn.Module, forms: Mapping[str, Form], source: CalibrationSource, progress: Progress | None = None,
    budget_bytes: int = BUDGET_BYTES, settled: Mapping[str, CompressedModule] | None = None,
) -> Rounded:  # fmt: skip
    """Round every layer of `forms` with the scales that its inputs ask for; nothing of the model is edited.

    The modules that come back are the layers' compressed forms, and norms and routers that have taken scales in.
    A decoder layer keeps its scales only if the divergence on held-out text falls by them, given those before;
    `settled` are forms that stand already. Raises
    InvalidSetting for a model without channels that could be scaled.
    """
    learned, judged = parted(source)
    told = {"name": source.name, "tokens": learned.tokens, "held_out_tokens": judged.tokens, "sha256": source.digest}
    nearest = {path: form.nearest(model.get_submodule(path)) for path, form in forms.items()}
    found = Rounded({**(settled or {}), **nearest}, source=told, method="awq")
    held_out = HeldOut(model, judged)
    folds = _usable(model, find_folds(model, list(forms), judged.batches[0]), held_out, judged, found)
    scales = _search(model, folds, forms, learned, found, budget_bytes, progress)
    candidates: dict[str, nn.Module] = {}
    for path, one in scales_of_modules(scales).items():
        module = model.get_submodule(path)
        form = forms.get(path)  # norms and routers have none
        candidates[path] = form.nearest(scaled(module, one, torch.float32)) if form else scaled(module, one)
    choose_by_layer(model, found, candidates, held_out, progress)
    return found


def _usable(
    model: nn.Module, folds: Sequence[Fold], held_out: HeldOut, judged: CalibrationSource, found: Rounded
) -> list[Fold]:
    """The folds that hold on this model; those that do not are told with their reasons."""
    with stood_in(model, found.modules):
        bar = SAME * held_out.divergence(model)
    judge = HeldOut(model, CalibrationSource(judged.name, judged.batches[:1]))
    checked = holding(model, folds, judge, bar)
    found.left = {fold.name: fold.left for fold in checked if fold.left}
    usable = [fold for of_layer in by_layer(checked).values() for fold in of_layer]
    if not usable:
        reason = next(iter(found.left.values()), "no norm and no layer makes what a compressed layer reads")
        raise InvalidSetting(
            f"this {type(model).__name__} has no channels that could be scaled: {reason}. "
            "Use calibration='gptq', or leave it out."
        )
    return usable


# ---------------------------------------------------------------- the search


def _search(
    model: nn.Module, folds: Sequence[Fold], forms: Mapping[str, Form], learned: CalibrationSource, found: Rounded,
    budget_bytes: int, progress: Progress | None,
) -> dict[Fold, Tensor]:  # fmt: skip
    """Scales for each fold that gains by them, searched as soon as the statistics of its readers are there."""
    pending = list(folds)
    groups = list(groups_within(watched_layers(model, _readers_of(pending)), True, budget_bytes))
    statistics: dict[str, InputStatistics] = {}
    done: set[str] = set()
    scales: dict[Fold, Tensor] = {}
    for number, group in enumerate(groups):
        paths, part = [one.path for one in group], part_of(progress, "calibration", number, len(groups))
        statistics |= by_reader(collect_inputs(model, learned, paths, budget_bytes=budget_bytes, progress=part))
        done |= set(paths)
        for fold in [fold for fold in pending if done >= set(fold.readers)]:
            pending.remove(fold)
            best, of_fold = _scales_of(model, fold, forms, statistics)
            if best.loss < 1:
                scales[fold] = of_fold
                found.scales[fold.name] = {"alpha": best.alpha, "weighed": best.weighed, "loss": round(best.loss, 4)}
            else:
                found.left[fold.name] = NO_GAIN
        needed = _readers_of(pending)
        statistics = {name: one for name, one in statistics.items() if _layer_of_statistics(name) in needed}
    return scales


def _readers_of(folds: Sequence[Fold]) -> list[str]:
    return list(dict.fromkeys(path for fold in folds for path in fold.readers))


def _layer_of_statistics(name: str) -> str:
    for stack in (GATE_UP, DOWN):
        name = name.partition(f".{stack}[")[0]
    return name


def _scales_of(
    model: nn.Module, fold: Fold, forms: Mapping[str, Form], statistics: Statistics
) -> tuple[Found, Tensor]:  # fmt: skip
    """What was found for a fold, and its scales as what takes them in can hold them."""
    if fold.reads_its_own:
        reached, reader = _stack(model, fold.maker, DOWN, forms[fold.maker], statistics)
        scales = torch.ones(fold.channels(model), dtype=torch.float64)
        best = search_scales([reader], own=True)
        scales[reached] = best.scales.to(scales.device)
        return best, scales
    readers = [_reader_of(model, path, forms[path], statistics) for path in fold.readers]
    best = search_scales(readers, whole=bool(fold.routers), alike=fold.alike)
    maker: Any = model.get_submodule(fold.maker)
    return best, best.scales if fold.head else held_scales(maker.weight, best.scales)


def _reader_of(model: nn.Module, path: str, form: Form, statistics: Statistics) -> Reader:
    parameters: Any = model.get_submodule(path)._parameters
    if GATE_UP in parameters:
        return _stack(model, path, GATE_UP, form, statistics)[1]
    return _reader(parameters["weight"][None], [statistics[path]], form)


def _stack(
    model: nn.Module, path: str, stack: str, form: Form, statistics: Statistics
) -> tuple[list[int], Reader]:  # fmt: skip
    """The experts that a token reached, and their matrices."""
    weights: Any = model.get_submodule(path)._parameters[stack]
    seen = {number: statistics.get(f"{path}.{stack}[{number}]") for number in range(weights.shape[0])}
    there = {number: one for number, one in seen.items() if one is not None}
    return list(there), _reader(weights[list(there)], list(there.values()), form)


def _reader(weights: Tensor, seen: Sequence[InputStatistics], form: Form) -> Reader:
    kind: Any = form.kind
    grams = torch.stack([one.gram for one in seen if one.gram is not None]).to(weights.device)
    return Reader(
        weights, grams, lambda rows: kind.dequantized(*kind.quantize(rows, form.group), torch.float32)
    )  # fmt: skip
