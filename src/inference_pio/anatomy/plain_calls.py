"""Which calls of an attention function a pattern over positions can serve, and in words why not the others."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from inference_pio.compat import ONLY_THE_LIBRARY_KNOWS, attention_name
from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.plain_mask import Extent, extent_of, extent_without_mask

UNKNOWN_MASK = "a mask that hides more than what comes later and padding on the left"


def why_dense(module: nn.Module, rest: Mapping[str, Any]) -> str | None:
    """Why a call must go to the dense function, whatever its tensors are; None where nothing speaks against a pattern.

    Raises RefusedOnOptimized for attention weights, which no fused kernel has.
    """
    if rest.get("output_attentions"):
        raise RefusedOnOptimized(
            "output_attentions=True asks for attention weights, and a sparse pattern never computes them: take the "
            "optimization back first, or call the model without output_attentions."
        )
    causal = rest.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return "attention that is not causal"
    if rest.get("sliding_window") is not None:
        return "a sliding window"
    if rest.get("dropout"):
        return "dropout"
    given = sorted(name for name in ONLY_THE_LIBRARY_KNOWS if rest.get(name) is not None)
    return f"{given[0]}, which only the library knows" if given else None


def library_flash(module: nn.Module) -> str | None:
    """The name of the library's own flash kernel, if a module runs one: it is given its tokens in another form."""
    name = attention_name(module.config) or ""  # type: ignore[arg-type]
    return name if "flash_attention" in name else None


class ExtentReader:
    """Reads what a mask means, once for all layers of one forward, which are given the same tensor."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, Extent | None] | None = None

    def read(self, mask: Tensor | None, query: Tensor, key: Tensor) -> Extent | None:
        """The extent of one call, or None where the mask is of no known kind."""
        batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        if mask is None:
            return extent_without_mask(batch, queries, keys)
        if mask.shape[-2:] != (queries, keys):
            return None
        if mask.is_inference():  # whether it has been written since cannot be told
            return extent_of(mask, batch)
        last = self._last
        if last is None or last[0]() is not mask or last[1] != mask._version:
            last = self._last = (weakref.ref(mask), mask._version, extent_of(mask, batch))
        return last[2]
