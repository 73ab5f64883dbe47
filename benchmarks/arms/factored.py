"""Layers in two factors, of a model that bears it: its random weights are given the rank that they are to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import inference_pio
from benchmarks.arms.decoder import Decoder
from benchmarks.arms.ours import EngineDecoder
from benchmarks.arms.room import Room
from inference_pio.anatomy.side_by_side import SideBySide, side_by_side
from inference_pio.anatomy.walk import linears
from inference_pio.calibration.ranks import align_of, factor_numbers, rank_at

RATIO = 0.5
"""Of the numbers of all layers, whichever of them it is taken from."""
PARTS = ("attention", "mlp")


def decomposed(form: str, *parts: str) -> Callable[[nn.Module, Room], Decoder]:
    """Level graph over `tensor_decomposition` by the weights alone, of some parts of each layer or of both."""

    def make(model: nn.Module, room: Room) -> Decoder:
        asked: dict[str, Any] = {
            "decomposition_ratio": _ratio(model, parts), "form": form, "calibration": "none",
            "refuse_slower": not room.smoke, "targets": [path for one in _inputs(model, parts) for path in one.paths],
        }  # fmt: skip
        given = {"tensor_decomposition": asked, "kernel_fusion": {"level": "graph"}}
        names = ["tensor_decomposition", "flash_attention", "kernel_fusion"]
        manager = inference_pio.get_optimization_manager()
        manager.apply_optimizations(model, names, parameters=given)
        room.notes += [f"{one.name}: {note}" for one in manager.get_receipts(model)[:1] for note in one.notes]
        return EngineDecoder(model, room)

    return make


def of_half_the_rank(form: str, *parts: str) -> Callable[[nn.Module], None]:
    """Weights as they were in a few directions of their inputs, by chance, and larger for it; nothing in all others."""

    @torch.no_grad()
    def prepare(model: nn.Module) -> None:
        ratio = _ratio(model, parts)
        for number, one in enumerate(_inputs(model, parts)):
            rank = _rank(one, form, ratio)
            weights = [model.get_submodule(path).weight for path in one.paths]
            chance = torch.Generator(weights[0].device).manual_seed(number)
            drawn = torch.randn(one.inputs, rank, generator=chance, device=weights[0].device)
            few, _ = torch.linalg.qr(drawn)
            for weight in weights:
                weight.copy_((weight.float() @ few) @ few.T * (one.inputs / rank) ** 0.5)

    return prepare


def _inputs(model: nn.Module, parts: tuple[str, ...]) -> list[SideBySide]:
    """The layers of some parts, those of one input together."""
    paths = [path for path, _, role in linears(model) if role.startswith(parts or PARTS)]
    return side_by_side(model, paths)


def _ratio(model: nn.Module, parts: tuple[str, ...]) -> float:
    """What some parts give up, so that `RATIO` of the numbers of all layers goes; of tiny models what they can."""
    inputs, every = _inputs(model, parts), sum(one.numbers for one in _inputs(model, PARTS))
    least = max(_least(one) / one.numbers for one in inputs)
    return min(RATIO * every / sum(one.numbers for one in inputs), 1 - least)


def _least(one: SideBySide) -> int:
    rows = sum(one.outputs)
    return factor_numbers(rows, one.inputs, align_of(rows, one.inputs), pivoted=False)


def _rank(one: SideBySide, form: str, ratio: float) -> int:
    rows = sum(one.outputs)
    rank = rank_at(rows, one.inputs, ratio, align_of(rows, one.inputs), form == "pivoted")
    assert rank is not None  # matrices of real models have ranks of half their numbers, tiny ones too
    return rank
