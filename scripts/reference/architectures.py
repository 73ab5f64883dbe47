"""The five models' configurations: the library's own classes at a size of about 3.5 million parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3VLConfig,
)

from .tokenizer import SPECIAL, VOCABULARY

NAMES = ("qwen3", "qwen3_moe", "glm4_moe", "glm4_moe_lite", "qwen3_vl")
CONTEXT = 16384
# Low enough that heads find the token before within some hundred steps; at 1e6 that took about twice as many.
THETA = 10_000.0
PICTURE_GRID = 6
EMBEDDING_STD = 0.5
# Two heads' norms of 1.4 let a score reach 16: enough for one token among 8192 to take nearly all attention.
HEAD_NORM = 1.4
# Latent attention has no such norms: started at 1, its first layer looked at all 8192 tokens alike to the end.
LATENT_NORM = 4.0
_ROPE = {"rope_type": "default", "rope_theta": THETA}
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
# Every width of an expert is a multiple of 128, so that groups of 32, 64 and 128 divide it.
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 4, "moe_intermediate_size": 128, "norm_topk_prob": True}


def _qwen3() -> PreTrainedConfig:
    return Qwen3Config(
        **_TEXT | _ENDS,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        tie_word_embeddings=True,
        rope_parameters=_ROPE,
    )


def _qwen3_moe() -> PreTrainedConfig:
    return Qwen3MoeConfig(
        **_TEXT | _ENDS | _EXPERTS,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_experts=16,
        router_aux_loss_coef=0.01,
        tie_word_embeddings=False,
        rope_parameters=_ROPE,
    )


def _glm4_moe() -> PreTrainedConfig:
    return Glm4MoeConfig(
        **_TEXT | _ENDS | _EXPERTS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        n_routed_experts=16,
        n_shared_experts=1,
        first_k_dense_replace=1,
        use_qk_norm=True,
        attention_bias=True,
        num_nextn_predict_layers=0,
        routed_scaling_factor=1.0,
        tie_word_embeddings=False,
        rope_parameters=_ROPE | {"partial_rotary_factor": 0.5},
    )


def _glm4_moe_lite() -> PreTrainedConfig:
    sizes = {key: value for key, value in _TEXT.items() if key != "head_dim"} | {"num_key_value_heads": 4}
    return Glm4MoeLiteConfig(
        **sizes | _ENDS | _EXPERTS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        n_routed_experts=16,
        n_shared_experts=1,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        routed_scaling_factor=1.8,
        tie_word_embeddings=False,
        rope_parameters=_ROPE,
    )


def _qwen3_vl() -> PreTrainedConfig:
    text = _TEXT | {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "rope_parameters": _ROPE | {"mrope_section": [12, 10, 10], "mrope_interleaved": True},
        "pad_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 256,
        "num_position_embeddings": PICTURE_GRID**2,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
        tie_word_embeddings=True,
    )


_CONFIGS = {
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": _glm4_moe_lite,
    "qwen3_vl": _qwen3_vl,
}


def configuration(name: str) -> PreTrainedConfig:
    """The configuration of the reference model `name`."""
    return _CONFIGS[name]()


def build(name: str, seed: int, config: PreTrainedConfig | None = None) -> nn.Module:
    """The untrained model in bf16 (the type it is trained and shipped in; the optimizer holds fp32 masters)."""
    torch.manual_seed(seed)
    maker = AutoModelForImageTextToText if name == "qwen3_vl" else AutoModelForCausalLM
    model = maker.from_config(config or configuration(name), dtype=torch.bfloat16, attn_implementation="sdpa")
    _start(model)
    return model.train()


@torch.no_grad()
def _start(model: Any) -> None:
    """The library's start, but attention can be sharp, and an untied table is loud beside what the layers add."""
    decoder = getattr(model.model, "language_model", model.model)
    if model.lm_head.weight is not decoder.embed_tokens.weight:
        decoder.embed_tokens.weight.normal_(std=EMBEDDING_STD)
    for name, weight in decoder.layers.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.fill_(HEAD_NORM)
        elif name.endswith(("q_a_layernorm.weight", "kv_a_layernorm.weight")):
            weight.fill_(LATENT_NORM)
