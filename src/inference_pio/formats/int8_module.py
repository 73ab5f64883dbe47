"""What int8 modules share: scales that keep their dtype, and checkpoints of the original refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized


class Int8Module(nn.Module):
    """A module of int8 codes (`*_int8`) with bfloat16 scales (`*_scale`): `half()` and `to(dtype)` never round them."""

    original_weights: tuple[str, ...] = ()
    """The names under which the original module kept its weights."""

    def __getattr__(self, name: str) -> Any:
        if name in type(self).original_weights:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}: its weights are int8 codes with a scale a row. "
                "dequantize() gives the weights that they stand for."
            )
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Int8Module:
        scales = {name: buffer for name, buffer in self._buffers.items() if name.endswith("_scale")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, scale in scales.items():
            moved = self._buffers[name]
            if scale is not None and moved is not None and moved.dtype is not scale.dtype:
                self._buffers[name] = scale.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.original_weights:
            if prefix + name in state_dict:
                raise RefusedOnOptimized(
                    f"{prefix}{name}: this layer is compressed to int8 and cannot take original weights. "
                    "Call reset_model_optimizations(model) before loading original weights."
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)
