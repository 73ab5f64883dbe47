"""What a decoder's stack is given for some tokens, cut so that it is what those of one piece would be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

BY_TOKEN = {
    "input_ids": 1, "inputs_embeds": 1, "token_type_ids": 1, "mm_token_type_ids": 1, "position_ids": -1,
    "visual_pos_masks": 1, "cache_position": -1,
}  # fmt: skip
"""Tensors that have a place for each token, and the dimension that it is in."""
MASK, PICTURED, PICTURES = "attention_mask", "visual_pos_masks", "deepstack_visual_embeds"


def tokens_of(given: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and tokens of a call; none where it brings neither ids nor embeddings."""
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(found := given.get(name), Tensor) and found.dim() >= 2:
            return found.shape[0], found.shape[1]
    return 0, 0


def why_not_cut(given: Mapping[str, Any], held: int) -> str | None:
    """Why the arguments of a call behind `held` tokens cannot be cut, or None."""
    tokens = tokens_of(given)[1]
    for name, value in given.items():
        if name == MASK:
            if any(mask.shape[-1] != held + tokens for mask in _masks(value)):
                return f"its {MASK} has another length than its tokens"
        elif name in BY_TOKEN:
            if value is not None and value.shape[BY_TOKEN[name]] != tokens:
                return f"{name} is not told token by token"
        elif isinstance(value, Tensor):
            return f"{name} is an argument that is not known here"
    if given.get(PICTURES) is not None and given.get(PICTURED) is None:
        return f"{PICTURES} come without {PICTURED}"
    return None


def cut(given: Mapping[str, Any], held: int, begin: int, end: int) -> dict[str, Any]:
    """The arguments for the tokens from `begin` to `end` of a call behind `held` others."""
    part = dict(given)
    for name, dim in BY_TOKEN.items():
        if (value := given.get(name)) is not None:
            part[name] = value.narrow(dim, begin, end - begin)
    if given.get(MASK) is not None:
        part[MASK] = _cut_mask(given[MASK], begin, end, held + end)
    if given.get(PICTURES) is not None:
        columns = given[PICTURED].nonzero()[:, 1]  # row by row, as the embeddings of pictures lie
        inside = (columns >= begin) & (columns < end)
        part[PICTURES] = [states[inside.to(states.device)] for states in given[PICTURES]]
    return part


def _masks(mask: Any) -> list[Tensor]:
    found = mask.values() if isinstance(mask, Mapping) else [mask]
    return [one for one in found if isinstance(one, Tensor)]


def _cut_mask(mask: Any, begin: int, end: int, keys: int) -> Any:
    """A mask of tokens [B, all], or of queries and keys [B, 1, tokens, all]; or one for each kind of layer."""
    if isinstance(mask, Mapping):
        return {kind: _cut_mask(one, begin, end, keys) for kind, one in mask.items()}
    if not isinstance(mask, Tensor):
        return mask
    return mask[:, :keys] if mask.dim() == 2 else mask[..., begin:end, :keys]
