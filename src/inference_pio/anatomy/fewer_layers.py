"""What a configuration tells of its layers, for some of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COUNT = "num_hidden_layers"
NUMBERS = frozenset({"mlp_only_layers", "full_attn_idxs", "moe_layers"})
"""Lists that name layers by their numbers."""
FIRST = frozenset({"first_k_dense_replace", "max_window_layers"})
"""Counts of the first layers, which differ from the others."""
PERIODS = ("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", "attn_layer_period")
"""By which a configuration tells that every so many layers differ."""


def of_fewer_layers(config: Any, kept: Sequence[int]) -> dict[str, Any] | str:
    """The entries of a configuration that change where only the layers numbered `kept` stay, or why it cannot tell.

    >>> from transformers import Qwen3Config
    >>> config = Qwen3Config(num_hidden_layers=3)
    >>> of_fewer_layers(config, [0, 2])["num_hidden_layers"]
    2
    """
    names = getattr(type(config), "attribute_map", {})
    key = names.get(COUNT, COUNT)
    held = vars(config)
    count = held.get(key)
    if not isinstance(count, int) or count <= max(kept):
        return f"its configuration does not tell its layers by {COUNT}"
    for period in PERIODS:
        if isinstance(step := held.get(names.get(period, period)), int) and step > 1:
            return f"its configuration tells the kinds of its layers by a period ({period}={step})"
    place = {old: new for new, old in enumerate(kept)}
    told: dict[str, Any] = {key: len(kept)}
    for name, value in held.items():
        if name in NUMBERS and isinstance(value, list):
            told[name] = [place[one] for one in value if one in place]
        elif name in FIRST and isinstance(value, int):
            told[name] = sum(number < value for number in kept)
        elif isinstance(value, list) and len(value) == count and ("layer" in name or name.endswith("_types")):
            told[name] = [value[number] for number in kept]
    return {name: value for name, value in told.items() if value != held[name]}
