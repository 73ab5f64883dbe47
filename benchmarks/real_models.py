"""Models of real dimensions with random weights, built where they run; and the same classes tiny, for the CPU.

Every matrix is drawn so that its output has the scale of its input, and query and key are scaled so that attention is
peaked: a fault in attention, positions or routing then moves the logits far. What blocks add to the residual stream is
small beside what they read, as in trained models: with the library's own drawing rounding grows with every layer, and
at 40 layers a right system would be told from a wrong one no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GAIN = {"q_norm": 1.7, "k_norm": 1.7}
"""Norm weights that spread attention scores by about 3; all other norms but the last are one."""

BRANCHES = 2.0
"""How much all blocks together add to the stream, the embeddings being one."""
FINAL_NORMS = ("model.norm.weight", "language_model.norm.weight")

QWEN3_4B = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
    "rope_theta": 5e6, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3_30B = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "max_position_embeddings": 262144, "rope_theta": 1e7,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_VL_TEXT = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}  # fmt: skip
QWEN3_VL_VISION = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048,
    "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
GLM_47_LAYERS = {
    "vocab_size": 151552, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
    "num_hidden_layers": 4, "first_k_dense_replace": 1, "num_attention_heads": 96, "num_key_value_heads": 8,
    "head_dim": 128, "partial_rotary_factor": 0.5, "n_routed_experts": 160, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5,
    "norm_topk_prob": True, "max_position_embeddings": 202752, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
}  # fmt: skip
TINY_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Recipe:
    """A model class with its real and its tiny dimensions."""

    config: str
    real: Mapping[str, Any]
    tiny: Mapping[str, Any]
    picture: bool = False
    note: str = ""


RECIPES = {
    "qwen3-4b": Recipe("Qwen3Config", QWEN3_4B, TINY | {"tie_word_embeddings": True}),
    "qwen3-30b-a3b": Recipe("Qwen3MoeConfig", QWEN3_30B, TINY | TINY_EXPERTS | {"tie_word_embeddings": False}),
    "qwen3-vl-2b": Recipe(
        "Qwen3VLConfig",
        {"text_config": QWEN3_VL_TEXT, "vision_config": QWEN3_VL_VISION, "tie_word_embeddings": True},
        {
            "text_config": TINY
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 64,
                "deepstack_visual_indexes": [0],
                "patch_size": 8,
                "num_position_embeddings": 64,
            },
            "tie_word_embeddings": True,
            "image_token_id": 250,
            "video_token_id": 251,
            "vision_start_token_id": 252,
            "vision_end_token_id": 253,
        },
        picture=True,
    ),
    "glm-4.7-flash": Recipe(
        "Glm4MoeLiteConfig",
        {},
        {
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "qk_nope_head_dim": 8,
            "max_position_embeddings": 4096,
        },
        note="the library's default configuration",
    ),
    "glm-4.7-layers": Recipe(
        "Glm4MoeConfig",
        GLM_47_LAYERS,
        TINY
        | {
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
        },
        note="4 of the 92 layers",
    ),
}


def build(
    name: str, device: torch.device | str, *, smoke: bool = False, seed: int = 0, layers: int = 0, **options: Any
) -> nn.Module:  # fmt: skip
    """The model `name` in bfloat16 on `device`, ready to generate; `options` go to the library's `from_config`.

    `layers`, where given, is how many its decoder has, each of the real width.

    >>> build("qwen3-4b", "cpu", smoke=True).config.hidden_size
    64
    """
    import transformers

    recipe = RECIPES[name]
    sizes = dict(recipe.tiny if smoke else recipe.real)
    if layers:
        few = {"num_hidden_layers": layers}
        sizes |= {"text_config": sizes["text_config"] | few} if recipe.picture else few
    config = getattr(transformers, recipe.config)(**sizes)
    kind = transformers.AutoModelForImageTextToText if recipe.picture else transformers.AutoModelForCausalLM
    with torch.device(device), _no_first_init():
        model = kind.from_config(config, dtype=torch.bfloat16, **options)
    initialize(model, seed)
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.do_sample = None, 0, False  # random text never ends itself
    return model.eval().requires_grad_(False)


def initialize(model: nn.Module, seed: int) -> None:
    """Draw all weights from `seed`: the same on every call of one device and version of torch."""
    generators: dict[torch.device, torch.Generator] = {}
    config = model.config.get_text_config()
    added = BRANCHES / math.sqrt(2 * config.num_hidden_layers * config.hidden_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # tied ones come once
            if parameter.device not in generators:
                generators[parameter.device] = torch.Generator(parameter.device).manual_seed(seed)
            _draw(name, parameter, generators[parameter.device], added)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(
                    0.0, 0.5, generator=generators[buffer.device]
                )  # routing far from ties: few flip by rounding


def _draw(name: str, parameter: Tensor, generator: torch.Generator, added: float) -> None:
    """`added` is the scale of what a block adds to the stream; embeddings start it at one over the width's root."""
    if name.endswith(FINAL_NORMS):  # random signs: else a tied head would answer each token with itself
        parameter.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        return
    if parameter.dim() == 1:
        role = name.split(".")[-2] if "." in name else name
        parameter.fill_(0.0 if name.endswith("bias") else GAIN.get(role, 1.0))
        return
    # experts are [experts, out, in]; a convolution's inputs are all dimensions but the first
    inputs = parameter.shape[-1] if parameter.dim() == 3 else parameter[0].numel()
    scale = added if any(part in name for part in ("o_proj", "down_proj")) else 1.0
    parameter.normal_(0.0, scale / math.sqrt(inputs), generator=generator)


@contextmanager
def _no_first_init() -> Iterator[None]:
    """torch's own drawing is left out: it costs minutes on a CPU, and every weight is drawn again."""
    kept: list[tuple[Any, str, Callable[..., Any]]] = []
    for function in ("kaiming_uniform_", "uniform_", "normal_"):
        kept.append((nn.init, function, getattr(nn.init, function)))
        setattr(nn.init, function, lambda tensor, *given, **options: tensor)
    try:
        yield
    finally:
        for place, function, original in kept:
            setattr(place, function, original)


def prompt(model: nn.Module, tokens: int, seed: int = 1, rows: int = 1) -> Tensor:
    """Random token ids [rows, tokens] that mean nothing special to the model (no picture tokens)."""
    words = min(model.config.get_text_config().vocab_size, 150000) - 8
    if words < 512:
        words = 240
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, words, (rows, tokens), generator=generator).to(next(model.parameters()).device)
