"""Scales folded into modules, and whether a fold holds: with powers of two in full weights, a model's bits stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from inference_pio.calibration.folds import Fold
from inference_pio.calibration.held_out import HeldOut
from inference_pio.calibration.rounding import layer_of
from inference_pio.calibration.scaled_layer import Scales, scaled
from inference_pio.calibration.stood_in import stood_in

CHANGES = "answers change with it: these layers are not all that makes and reads its channels"


def scales_of_modules(scales: Mapping[Fold, Tensor]) -> dict[str, Scales]:
    """What each module takes in, of all the folds that it takes part in."""
    found: dict[str, Scales] = {}

    def add(path: str, **parts: Tensor) -> None:
        found[path] = replace(found.get(path, Scales()), **parts)

    for fold, of_fold in scales.items():
        if fold.reads_its_own:
            add(fold.maker, inner=of_fold)
            continue
        add(fold.maker, rows=of_fold.view(-1, fold.repeats, fold.head)[:, 0].flatten() if fold.head else of_fold)
        for path in (*fold.readers, *fold.routers):
            add(path, columns=of_fold)
    return found


def by_layer(folds: Sequence[Fold]) -> dict[str, list[Fold]]:
    """Folds that are not left, by the decoder layer that they are in."""
    layers: dict[str, list[Fold]] = {}
    for fold in folds:
        if fold.left is None:
            layers.setdefault(layer_of(fold.maker), []).append(fold)
    return layers


def holding(model: nn.Module, folds: Sequence[Fold], judge: HeldOut, bar: float) -> list[Fold]:
    """The folds, with a reason at those that take the model further than `bar` from its answers.

    Layer by layer, and fold by fold where a layer does. Nothing is edited.
    """
    failing: set[Fold] = set()
    for of_layer in by_layer(folds).values():
        if _change(model, of_layer, judge) > bar:
            failing |= {fold for fold in of_layer if _change(model, [fold], judge) > bar}
    return [replace(fold, left=CHANGES) if fold in failing else fold for fold in folds]


def _change(model: nn.Module, folds: Sequence[Fold], judge: HeldOut) -> float:
    twins = {
        path: scaled(model.get_submodule(path), one)
        for path, one in scales_of_modules({fold: _ones_and_twos(model, fold) for fold in folds}).items()
    }
    with stood_in(model, twins):
        return judge.divergence(model)


def _ones_and_twos(model: nn.Module, fold: Fold) -> Tensor:
    shape = fold.channels(model)
    numbers = torch.arange(shape[-1]) % (fold.head or shape[-1])
    return (1.0 + numbers % 2).expand(shape)
