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
from inference_pio.calibration.ranks import align_of, rank_at

RATIO = 0.5
PARTS = ("attention", "mlp")


def decomposed(form: str) -> Callable[[nn.Module, Room], Decoder]:
    """Level graph over `tensor_decomposition` by the weights alone."""

    def make(model: nn.Module, room: Room) -> Decoder:
        asked: dict[str, Any] = {
            "decomposition_ratio": RATIO, "form": form, "calibration": "none", "refuse_slower": not room.smoke,
        }  # fmt: skip
        given = {"tensor_decomposition": asked, "kernel_fusion": {"level": "graph"}}
        names = ["tensor_decomposition", "flash_attention", "kernel_fusion"]
        manager = inference_pio.get_optimization_manager()
        manager.apply_optimizations(model, names, parameters=given)
        room.notes += [f"{one.name}: {note}" for one in manager.get_receipts(model)[:1] for note in one.notes]
        return EngineDecoder(model, room)

    return make


def of_half_the_rank(form: str) -> Callable[[nn.Module], None]:
    """Weights as they were in a few directions of their inputs, by chance, and larger for it; nothing in all others."""

    @torch.no_grad()
    def prepare(model: nn.Module) -> None:
        paths = [path for path, _, role in linears(model) if role.startswith(PARTS)]
        for number, one in enumerate(side_by_side(model, paths)):
            rank = _rank(one, form)
            weights = [model.get_submodule(path).weight for path in one.paths]
            chance = torch.Generator(weights[0].device).manual_seed(number)
            drawn = torch.randn(one.inputs, rank, generator=chance, device=weights[0].device)
            few, _ = torch.linalg.qr(drawn)
            for weight in weights:
                weight.copy_((weight.float() @ few) @ few.T * (one.inputs / rank) ** 0.5)

    return prepare


def _rank(one: SideBySide, form: str) -> int:
    rows = sum(one.outputs)
    rank = rank_at(rows, one.inputs, RATIO, align_of(rows, one.inputs), form == "pivoted")
    assert rank is not None  # matrices of real models have ranks of half their numbers, tiny ones too
    return rank
