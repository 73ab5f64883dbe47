"""inference-pio itself, through the user's own `model.generate`; and the library's SDPA with kernels left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import inference_pio
from benchmarks.arms.decoder import Decoded, Decoder, GenerateDecoder
from benchmarks.arms.room import Room


def profile(name: str) -> Callable[[nn.Module, Room], Decoder]:
    def make(model: nn.Module, room: Room) -> Decoder:
        inference_pio.optimize(model, name)
        room.notes += _said(model)
        return GenerateDecoder(model)

    return make


def named(*names: str) -> Callable[[nn.Module, Room], Decoder]:
    def make(model: nn.Module, room: Room) -> Decoder:
        inference_pio.get_optimization_manager().apply_optimizations(model, list(names))
        room.notes += _said(model)
        return GenerateDecoder(model)

    return make


def _said(model: nn.Module) -> list[str]:
    applied = inference_pio.get_optimization_manager().get_model_optimizations(model)
    return [f"applied: {', '.join(str(name) for name in applied)}"]


class SdpaDecoder(Decoder):
    """Another decoder, with torch's attention kernels restricted while it runs."""

    def __init__(self, inner: Decoder, backends: list[Any]) -> None:
        self.inner, self.backends = inner, backends

    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        from torch.nn.attention import sdpa_kernel

        with sdpa_kernel(self.backends):
            return self.inner.decode(prompt, new_tokens, forced=forced, logits=logits)


def with_sdpa(inner: Decoder, which: str) -> Decoder:
    return SdpaDecoder(inner, sdpa_backends(which))


def sdpa_backends(which: str) -> list[Any]:
    from torch.nn.attention import SDPBackend

    if which == "no-cudnn":
        return [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return [SDPBackend.FLASH_ATTENTION]
