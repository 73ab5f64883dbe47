"""Eight tiny random models, one per structure the package must handle: seeded, and built in well under a second each.

>>> model = build("llama")
>>> logits(model, "llama").shape
torch.Size([2, 9, 131])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3VLConfig,
)

HIDDEN = 64
TEXT_TOKENS = 8
IMAGE_TOKEN, VISION_START_TOKEN, VISION_END_TOKEN = 124, 125, 126
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
DECODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}


class Plain(nn.Module):
    """A convolution and two linear layers: not a Hugging Face model, no config, no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, kernel_size=3, padding=1)
        self.act = nn.GELU()
        self.fc1 = nn.Linear(8 * 4 * 4, 96)
        self.fc2 = nn.Linear(96, 10, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.act(self.conv(images)), 4)
        return self.fc2(self.act(self.fc1(pooled.flatten(1))))


def _llama_config() -> PreTrainedConfig:
    return LlamaConfig(vocab_size=131, intermediate_size=100, **(DECODER | {"num_hidden_layers": 3}), **SPECIAL)


def _gpt2_config() -> PreTrainedConfig:
    return GPT2Config(vocab_size=128, n_embd=HIDDEN, n_head=4, n_layer=2, n_inner=96, n_positions=512, **SPECIAL)


def _qwen3_config() -> PreTrainedConfig:
    sizes = DECODER | {"num_hidden_layers": 3}
    return Qwen3Config(vocab_size=128, intermediate_size=96, head_dim=24, tie_word_embeddings=True, **sizes, **SPECIAL)


def _qwen3_moe_config() -> PreTrainedConfig:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
    return Qwen3MoeConfig(
        vocab_size=128, intermediate_size=96, head_dim=16, mlp_only_layers=[0], **experts, **DECODER, **SPECIAL
    )


def _qwen3_vl_config() -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    text = DECODER | {"vocab_size": 128, "intermediate_size": 96, "head_dim": 16, "rope_parameters": rope}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text | {"pad_token_id": 0},
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        video_token_id=123,
        vision_start_token_id=VISION_START_TOKEN,
        vision_end_token_id=VISION_END_TOKEN,
        tie_word_embeddings=True,
    )


def _glm4_moe_config() -> PreTrainedConfig:
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 48}
    return Glm4MoeConfig(
        vocab_size=128,
        intermediate_size=96,
        head_dim=16,
        use_qk_norm=True,
        attention_bias=True,
        first_k_dense_replace=1,
        **experts,
        **DECODER,
        **SPECIAL,
    )


def _glm4_moe_lite_config() -> PreTrainedConfig:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 40}
    latent = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 20}
    sizes = DECODER | {"num_key_value_heads": 4}
    return Glm4MoeLiteConfig(vocab_size=128, intermediate_size=96, **experts, **latent, **sizes, **SPECIAL)


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _llama_config,
    "gpt2": _gpt2_config,
    "qwen3": _qwen3_config,
    "qwen3_moe": _qwen3_moe_config,
    "qwen3_vl": _qwen3_vl_config,
    "glm4_moe": _glm4_moe_config,
    "glm4_moe_lite": _glm4_moe_lite_config,
}


def _builder(name: str) -> Callable[..., nn.Module]:
    def builder(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        return build(name, dtype, seed)

    return builder


TINY: dict[str, Callable[..., nn.Module]] = {name: _builder(name) for name in (*CONFIGS, "plain")}
HF_NAMES = tuple(CONFIGS)


def build(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, config: PreTrainedConfig | None = None
) -> nn.Module:
    """A tiny model in eval mode; the global random state is left as it was.

    Given a `config`, the model is built on that very object, as two models of one config share it.
    """
    with torch.random.fork_rng(devices=[]):
        model = Plain().to(dtype) if name == "plain" else _hugging_face(name, dtype, config)
        _fill(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _hugging_face(name: str, dtype: torch.dtype, config: PreTrainedConfig | None) -> nn.Module:
    auto = AutoModelForImageTextToText if name == "qwen3_vl" else AutoModelForCausalLM
    model = auto.from_config(config or CONFIGS[name](), dtype=dtype)
    model.generation_config.pad_token_id = 0
    if config is not None and model.config is not config:  # the library copies: one object is what is asked for here
        _share_config(model, model.config, config)
    return model


def _share_config(model: nn.Module, own: PreTrainedConfig, shared: PreTrainedConfig) -> None:
    swaps = {id(own): shared}
    for key in getattr(own, "sub_configs", None) or ():
        swaps[id(getattr(own, key))] = getattr(shared, key)
    for module in model.modules():
        if id(vars(module).get("config")) in swaps:
            module.config = swaps[id(module.config)]
    for theirs, ours in ((own, shared), *((getattr(own, k), getattr(shared, k)) for k in own.sub_configs or ())):
        ours._attn_implementation_internal = theirs._attn_implementation_internal
        ours._experts_implementation_internal = theirs._experts_implementation_internal


@torch.no_grad()
def _fill(model: nn.Module, generator: torch.Generator) -> None:
    """Weights of a scale at which logits differ; norms near one; router biases that matter."""
    for path, parameter in model.named_parameters():
        is_norm_weight = parameter.dim() == 1 and path.endswith(".weight")
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + float(is_norm_weight))
    for path, buffer in model.named_buffers():
        if path.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)


def inputs(name: str, model: nn.Module, seed: int = 0, image: bool = False) -> dict[str, torch.Tensor]:
    """Keyword arguments for one forward: two rows of tokens, or a batch of images for `plain`.

    `image=True` gives qwen3_vl one row holding an image of 4 x 4 patches (4 image tokens after merging).
    """
    generator = torch.Generator().manual_seed(seed)
    first = next(model.parameters())
    if name == "plain":
        pixels = torch.randn(2, 3, 8, 8, generator=generator)
        return {"images": pixels.to(first.device, first.dtype)}
    if image:
        return _image_inputs(name, first, generator)
    tokens = torch.randint(1, 120, (2, TEXT_TOKENS), generator=generator).to(first.device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _image_inputs(name: str, like: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    if name != "qwen3_vl":
        raise ValueError(f"{name} takes no image")
    text = torch.randint(1, 120, (5,), generator=generator).tolist()
    tokens = [*text[:2], VISION_START_TOKEN, *[IMAGE_TOKEN] * 4, VISION_END_TOKEN, *text[2:]]
    input_ids = torch.tensor([tokens], device=like.device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == IMAGE_TOKEN).int(),
        "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=generator).to(like.device, like.dtype),
        "image_grid_thw": torch.tensor([[1, 4, 4]], device=like.device),
    }


@torch.no_grad()
def logits(model: nn.Module, name: str, seed: int = 0) -> torch.Tensor:
    """Logits of a prompt and of one cached decode step, [rows, tokens + 1, vocab]; of the images for `plain`.

    qwen3_vl adds those of a prompt with an image, flattened behind the others.
    """
    given = inputs(name, model, seed)
    if name == "plain":
        return model(**given)
    text = _with_decode_step(model, given)
    if name != "qwen3_vl":
        return text
    with _rope_deltas_kept(model):
        pictured = _with_decode_step(model, inputs(name, model, seed, image=True))
    return torch.cat([text.flatten(0, 1), pictured.flatten(0, 1)])[None]


def _with_decode_step(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    prompt = model(**given, use_cache=True)
    token = prompt.logits[:, -1:].argmax(-1)
    step = model(input_ids=token, past_key_values=prompt.past_key_values, use_cache=True)
    return torch.cat([prompt.logits, step.logits], dim=1)


@contextmanager
def _rope_deltas_kept(model: nn.Module) -> Iterator[None]:
    """Qwen3-VL remembers the last image's offsets on the model; a reader of logits must leave no trace."""
    owners = [module for module in model.modules() if "rope_deltas" in vars(module)]
    before = [module.rope_deltas for module in owners]
    try:
        yield
    finally:
        for module, deltas in zip(owners, before, strict=True):
            module.rope_deltas = deltas


@torch.no_grad()
def generate(model: nn.Module, name: str, new_tokens: int = 4, seed: int = 0) -> torch.Tensor:
    """Token ids of a greedy `model.generate`, prompt included; no tokenizer takes part."""
    given = inputs(name, model, seed)
    return model.generate(**given, max_new_tokens=new_tokens, do_sample=False)
