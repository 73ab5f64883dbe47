"""How peaked attention is: the share of a head's causal blocks that hold 95% of its attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCK, HELD = 64, 0.95
_NAME = "reference_block_mass"


@torch.no_grad()
def block_shares(model: Any, prompt: np.ndarray, block: int = BLOCK) -> list[list[float]]:
    """For each layer and head, the share of `block` x `block` causal blocks that hold 95% of the mass, best first."""
    shares: list[list[float]] = []

    def watching(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
    ) -> Any:
        if module.is_causal:
            keys = key[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0)
            masses = (block_mass(*head, settings["scaling"], block) for head in zip(query[0], keys, strict=True))
            shares.append([_share(mass) for mass in masses])
        return sdpa_attention_forward(module, query, key, value, mask, **settings)

    before = model.config._attn_implementation
    AttentionInterface.register(_NAME, watching)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    try:
        model.set_attn_implementation(_NAME)
        model(input_ids=torch.from_numpy(prompt[None]).to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        model.set_attn_implementation(before)
        AttentionInterface._global_mapping.pop(_NAME)
        AttentionMaskInterface._global_mapping.pop(_NAME)
    return shares


def block_mass(query: torch.Tensor, key: torch.Tensor, scaling: float, block: int) -> torch.Tensor:
    """Causal attention mass [blocks, blocks] of one head's queries and keys [length, width]; a row sums to `block`."""
    length = len(query) // block * block
    query, key = query[:length].float(), key[:length].float()
    columns = torch.arange(length, device=query.device)
    rows = []
    for part in columns.split(8 * block):
        scores = (query[part] @ key.T * scaling).masked_fill(columns > part[:, None], float("-inf"))
        rows.append(scores.softmax(-1).view(len(part) // block, block, -1, block).sum((1, 3)))
    return torch.cat(rows)


def _share(mass: torch.Tensor) -> float:
    """Of the causal blocks of each query row, the fewest that hold the mass, summed over rows."""
    rows = mass / mass.sum(-1, keepdim=True)
    reached = rows.sort(-1, descending=True).values.cumsum(-1)
    needed = (reached < HELD).sum(-1) + 1
    blocks = len(mass)
    return float(needed.clamp(max=blocks).sum() / (blocks * (blocks + 1) / 2))
