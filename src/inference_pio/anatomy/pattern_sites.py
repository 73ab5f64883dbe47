"""Where a sparse pattern over the keys makes sense: attention of text tokens to all that came before them."""

from __future__ import annotations

from typing import Any

from torch import nn

from inference_pio.anatomy.plain_calls import library_flash


def why_no_pattern(module: nn.Module, role: str) -> str | None:
    """Why an attention module is passed over by patterns, in words; None where one may act."""
    config: Any = getattr(module, "config", None)
    if config is None:
        return "its attention does not go through the library's attention interface"
    if role == "vision" or not getattr(module, "is_causal", True) or getattr(module, "is_cross_attention", False):
        return "it does not attend to earlier tokens alone"
    if (name := library_flash(module)) is not None:
        return f"it runs {name}, whose calls are not made for a pattern"
    kinds, number = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    kind = kinds[number] if kinds and isinstance(number, int) and number < len(kinds) else "full_attention"
    sliding = getattr(module, "sliding_window", None if kinds else getattr(config, "sliding_window", None))
    if sliding or kind != "full_attention":
        return "a sliding window bounds it already"
    return None
