"""Single attention modules of the library's classes, as the library runs them and as `flash_attention` makes them run.

The models around them are tiny; only what attention sees is of real size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DECODER = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "max_position_embeddings": 262144,
}  # fmt: skip
LATENT = DECODER | {"moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "hidden_size": 2048}
TINY_LATENT = {
    "hidden_size": 64, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "qk_nope_head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 1024, "intermediate_size": 64, "num_heads": 16, "out_hidden_size": 64}
PEAK = 5.0
"""Scores as the library draws weights are nearly alike (deviation 0.3), and would hide a fault."""
TINY_VISION = {"hidden_size": 64, "num_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}
PICTURE = {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
TOKENS = {"image_token_id": 120, "video_token_id": 121, "vision_start_token_id": 122, "vision_end_token_id": 123}


@dataclass(frozen=True)
class Attention:
    """One attention module inside its model, which must live as long: an optimization hangs on it."""

    model: Any
    module: Any

    @property
    def config(self) -> Any:
        return self.module.config

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """[B, H, S, D] over [B, key heads, L, D]: [B, S, H, D], as the module would call it."""
        return self._function(
            self.module, query, key, value, mask, dropout=0.0, scaling=self.module.scaling, **options
        )[0]

    @functools.cached_property
    def _function(self) -> Callable[..., Any]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        return ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]  # type: ignore[no-any-return]

    def causal_mask(self, present: Tensor, queries: int) -> Any:
        """What the model would hand its layers for the last `queries` of tokens present as told: int64 [B, tokens]."""
        from transformers import DynamicCache
        from transformers.masking_utils import create_causal_mask

        batch, tokens = present.shape
        device = present.device
        embedded = torch.empty(batch, queries, 1, dtype=torch.bfloat16, device=device)
        cache, before = DynamicCache(), tokens - queries
        if before:
            held = torch.empty(batch, 1, before, 1, dtype=torch.bfloat16, device=device)
            cache.update(held, held, 0)
        positions = torch.arange(before, tokens, device=device)[None].expand(batch, -1)
        return create_causal_mask(
            config=self.config, inputs_embeds=embedded, attention_mask=present, past_key_values=cache,
            position_ids=positions,
        )  # fmt: skip


def optimized(heads: int, key_heads: int, width: int, device: torch.device) -> Attention:
    """Attention of a decoder, through what `flash_attention` registers."""
    found = plain(heads, key_heads, width, device)
    _optimize(found.model)
    return found


def plain(heads: int, key_heads: int, width: int, device: torch.device) -> Attention:
    from transformers import Qwen3Config

    sizes = {"num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": width}
    model = _build(Qwen3Config(**DECODER | sizes), device)
    return Attention(model, model.model.layers[0].self_attn)


def latent(device: torch.device, *, ours: bool, smoke: bool = False) -> Attention:
    """The attention of GLM-4.7-Flash with its own dimensions, which are the library's default."""
    from transformers import Glm4MoeLiteConfig

    model = _build(Glm4MoeLiteConfig(**LATENT | (TINY_LATENT if smoke else {})), device)
    model.model.layers[0].self_attn.q_b_proj.weight.mul_(PEAK)
    if ours:
        _optimize(model)
    return Attention(model, model.model.layers[0].self_attn)


def vision(device: torch.device, *, ours: bool, smoke: bool = False) -> Attention:
    """The attention of Qwen3-VL-2B's picture tower."""
    from transformers import Qwen3VLConfig

    text = DECODER | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rope_parameters": ROPE}
    picture = VISION | PICTURE | (TINY_VISION if smoke else {})
    config = Qwen3VLConfig(text_config=text, vision_config=picture, tie_word_embeddings=True, **TOKENS)
    model = _build(config, device, picture=True)
    if ours:
        _optimize(model)
    return Attention(model, model.model.visual.blocks[0].attn)


def rotary(found: Attention, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines as the model makes them for `positions` [1, S]."""
    like = torch.empty(1, 1, 1, dtype=torch.bfloat16, device=positions.device)
    return found.model.model.rotary_emb(like, positions)  # type: ignore[no-any-return]


def _build(config: Any, device: torch.device, *, picture: bool = False) -> Any:
    import transformers

    torch.manual_seed(0)
    kind = transformers.AutoModelForImageTextToText if picture else transformers.AutoModelForCausalLM
    with torch.device(device):
        model: nn.Module = kind.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def _optimize(model: Any) -> None:
    import inference_pio

    inference_pio.get_optimization_manager().apply_optimizations(model, ["flash_attention"])
