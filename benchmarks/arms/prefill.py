"""Ways to run a forward of a long prompt: tokens in, the last position's logits out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import inference_pio
from benchmarks.arms.ours import sdpa_backends
from benchmarks.arms.room import Room

Forward = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class PrefillArm:
    """`make(model, room)` gives a function (tokens [1, S], keep) -> logits [keep, V]."""

    label: str
    make: Callable[[nn.Module, Room], Forward]
    exactness: str = "rounding"
    gpu_only: bool = False

    def unavailable(self, cuda: bool) -> str | None:
        return "needs an NVIDIA GPU" if self.gpu_only and not cuda else None


def forward(model: Any) -> Forward:
    @torch.no_grad()
    def run(tokens: Tensor, keep: int) -> Tensor:
        return model(input_ids=tokens, use_cache=True, logits_to_keep=keep).logits[0]  # type: ignore[no-any-return]

    return run


def _sdpa(which: str) -> Callable[[nn.Module, Room], Forward]:
    def make(model: nn.Module, room: Room) -> Forward:
        from torch.nn.attention import sdpa_kernel

        inner, backends = forward(model), sdpa_backends(which)

        def run(tokens: Tensor, keep: int) -> Tensor:
            with sdpa_kernel(backends):
                return inner(tokens, keep)

        return run

    return make


def _compiled(model: nn.Module, room: Room) -> Forward:
    options = room.compiling({"dynamic": False})
    return forward(model if options is None else torch.compile(model, **options))


def _profile(name: str) -> Callable[[nn.Module, Room], Forward]:
    def make(model: nn.Module, room: Room) -> Forward:
        inference_pio.optimize(model, name)
        return forward(model)

    return make


def _fused(level: str) -> Callable[[nn.Module, Room], Forward]:
    """`kernel_fusion` alone."""

    def make(model: nn.Module, room: Room) -> Forward:
        given = {"kernel_fusion": {"level": level}}
        inference_pio.get_optimization_manager().apply_optimizations(model, ["kernel_fusion"], parameters=given)
        return forward(model)

    return make


ARMS: dict[str, PrefillArm] = {
    "plain": PrefillArm("forward, default SDPA", lambda model, room: forward(model)),
    "flash-only": PrefillArm("forward, SDPA flash only", _sdpa("flash"), gpu_only=True),
    "compile": PrefillArm("forward, torch.compile", _compiled),
    "pio-elementwise": PrefillArm("inference-pio kernel_fusion elementwise", _fused("elementwise")),
    "pio-merged": PrefillArm("inference-pio kernel_fusion merged", _fused("merged")),
    "pio-lossless": PrefillArm("inference-pio lossless", _profile("lossless")),
    "pio-balanced": PrefillArm("inference-pio balanced", _profile("balanced"), "int8"),
}
