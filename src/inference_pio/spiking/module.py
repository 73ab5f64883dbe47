"""What spiking modules share: a code, thresholds that keep their precision, a path that counts, and no gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import torch
from torch import Tensor, nn

from inference_pio.errors import InvalidSetting, RefusedOnOptimized
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.tally import Tally

_AT_ONCE: ContextVar[bool] = ContextVar("inference_pio_from_counts", default=False)


@contextmanager
def from_counts_at_once() -> Iterator[None]:
    """Within this, all spiking modules compute in one product what their spikes would add up to."""
    token = _AT_ONCE.set(True)
    try:
        yield
    finally:
        _AT_ONCE.reset(token)


def at_once() -> bool:
    """Whether modules compute from counts now, as the quantized twin does."""
    return _AT_ONCE.get()


class SpikingModule(nn.Module):
    """`half()` and `to(dtype)` leave thresholds and weights as they are; checkpoints of the original are refused."""

    original_weights: tuple[str, ...] = ()
    """The names under which the original module kept its weights."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code
        self.path = type(self).__name__
        self.tally = Tally()

    def tell(self, path: str, tally: Tally) -> Self:
        """Count under a path from now on."""
        self.path, self.tally = path, tally
        return self

    def __getattr__(self, name: str) -> Any:
        if name in type(self).original_weights:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}: its weights are whole numbers with thresholds in them. "
                "reset_model_optimizations(model) brings the original back."
            )
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            moved = self._buffers[name]
            if old is not None and moved is not None and moved.dtype is not old.dtype:
                self._buffers[name] = old.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.original_weights:
            if prefix + name in state_dict:
                raise RefusedOnOptimized(
                    f"{prefix}{name}: this layer computes with spikes and cannot take original weights. "
                    "Call reset_model_optimizations(model) before loading original weights."
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def check_channels(module: nn.Module, x: Tensor, dim: int, channels: int) -> None:
    """Raise InvalidSetting for an input that the original would not take: a single channel would be spread over all."""
    if x.shape[dim] != channels:
        raise InvalidSetting(
            f"{type(module).__name__} is given {list(x.shape)}, and takes {channels} channels in dimension {dim}."
        )


def without_gradient(made: Tensor, *given: Tensor) -> Tensor:
    """`made` from what was `given`; a backward pass through it is refused, where it would be wrong in silence."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return _Unlearnable.apply(made, *given)  # type: ignore[no-any-return, no-untyped-call]
    return made


class _Unlearnable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Tensor, *given: Tensor) -> Tensor:
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RefusedOnOptimized(
            "spikes have no gradient, so a model that computes with them cannot be trained: "
            "update_model_optimization(model, 'snn_conversion', enabled=False) first."
        )
