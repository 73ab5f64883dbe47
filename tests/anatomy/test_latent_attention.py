"""Latent attention is told by its layers, and what keeps its cache from being used as it is is said in words."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from inference_pio.anatomy.latent_attention import (
    LatentAttention,
    is_latent_attention,
    latent_attention_of,
    latent_sites,
    readable_weight,
    why_not_absorbed,
    why_unreadable,
)
from inference_pio.formats.int8 import Int8Linear
from tests import tiny

SIZES = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 20}


def layer() -> nn.Module:
    found: nn.Module = tiny.build("glm4_moe_lite").get_submodule("model.layers.0.self_attn")
    return found


def of_family(family: str, attention: str, **changed: Any) -> nn.Module:
    """One attention layer of another family, as small as the tiny ones."""
    library = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kind = getattr(library, attention)
    config_class = next(
        value for name, value in vars(library).items() if name == attention[: -len("Attention")] + "Config"
    )
    config = config_class(hidden_size=64, num_attention_heads=4, num_key_value_heads=4, **SIZES, **changed)
    built: nn.Module = kind(config, 0)
    return built


def test_its_widths_are_read_off_its_layers() -> None:
    sites = latent_sites(tiny.build("glm4_moe_lite"))
    assert [(path, reason) for path, _, reason in sites] == [
        (f"model.layers.{number}.self_attn", None) for number in range(2)
    ]
    for _, module, _ in sites:
        assert latent_attention_of(module) == LatentAttention(heads=4, latent=32, rope=8, nope=16, value=20)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "glm4_moe", "qwen3_vl", "plain"])
def test_other_models_have_none(name: str) -> None:
    assert latent_sites(tiny.build(name)) == []


OF_ITS_KIND = {
    "deepseek_v3": "DeepseekV3Attention",
    "deepseek_v2": "DeepseekV2Attention",
    "minicpm3": "MiniCPM3Attention",
    "youtu": "YoutuAttention",
}


@pytest.mark.parametrize(("family", "attention"), OF_ITS_KIND.items())
def test_other_families_of_its_kind_are_told_too(family: str, attention: str) -> None:
    module = of_family(family, attention)
    assert is_latent_attention(module)
    assert why_not_absorbed(module) is None


def test_one_that_chooses_tokens_by_an_indexer_is_not_taken_for_it() -> None:
    module = of_family("deepseek_v32", "DeepseekV32Attention")
    assert is_latent_attention(module)
    assert "does more with what it expands (" in str(why_not_absorbed(module))


def test_a_class_that_expands_in_its_own_way_is_told() -> None:
    module = layer()
    kind: Any = type(module)

    class Scaled(kind):  # type: ignore[misc]
        def expand_kv(self, kv_nope: torch.Tensor, k_rot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            key, value = super().expand_kv(kv_nope, k_rot)
            return key * 2, value

    class InPlace(kind):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
            return self.o_proj(self.kv_b_proj(self.kv_a_layernorm(hidden_states)))  # type: ignore[no-any-return]

    for other, reason in ((Scaled, "in a way that is not known"), (InPlace, "without a method of its own")):
        module.__class__ = other
        assert reason in str(why_not_absorbed(module))


def test_layers_that_do_not_fit_each_other_are_told() -> None:
    for name, other in {
        "o_proj": nn.Linear(84, 64),
        "q_b_proj": nn.Linear(24, 95),
        "kv_b_proj": nn.Linear(31, 144),
        "kv_a_proj_with_mqa": nn.Linear(64, 32),
        "kv_a_layernorm": nn.RMSNorm(40),
    }.items():
        module = layer()
        module._modules[name] = other
        assert latent_attention_of(module) == "the widths of its layers do not fit each other", name
        assert why_not_absorbed(module) == "the widths of its layers do not fit each other", name
    module = layer()
    module._modules["o_proj"] = nn.Identity()
    assert latent_attention_of(module) == "it lacks a layer or a width of latent attention"


def test_an_overridden_expansion_is_left_alone() -> None:
    module: Any = layer()
    module.expand_kv = module.expand_kv
    assert why_not_absorbed(module) == "the method that expands its cache is overridden"


def test_a_plain_weight_is_read_without_a_copy_and_a_compressed_one_is_made() -> None:
    plain = layer().get_submodule("kv_b_proj")
    assert why_unreadable(plain) is None
    assert readable_weight(plain, torch.float32) is plain.weight
    compressed = Int8Linear.from_linear(plain)
    assert why_unreadable(compressed) is None
    assert torch.equal(readable_weight(compressed, torch.float32), compressed.dequantize())
    assert readable_weight(compressed, torch.bfloat16).dtype == torch.bfloat16


class _Doubling(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


class _Other(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def test_a_weight_that_something_stands_before_is_not_read_past_it() -> None:
    hooked, pre_hooked, wrapped, parametrized = (nn.Linear(4, 6, bias=False) for _ in range(4))
    hooked.register_forward_hook(lambda module, given, out: out)
    pre_hooked.register_forward_pre_hook(lambda module, given: None)
    wrapped.forward = nn.Linear(4, 6).forward  # type: ignore[method-assign]
    parametrize.register_parametrization(parametrized, "weight", _Doubling())
    for linear in (hooked, pre_hooked, wrapped):
        assert "hooks or a forward of somebody else" in str(why_unreadable(linear))
    for linear in (parametrized, nn.Linear(4, 6)):
        assert "a bias or a parametrization" in str(why_unreadable(linear))
    whole = nn.Linear(4, 6, bias=False)
    whole.weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.int8), requires_grad=False)
    assert "no plain numbers" in str(why_unreadable(whole))
    assert "(_Other)" in str(why_unreadable(_Other(4, 6, bias=False)))


def test_an_adapter_on_the_expanding_layer_is_refused_and_elsewhere_none_of_its_business() -> None:
    for target, refused in (("kv_b_proj", True), ("q_b_proj", False)):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".is_gradient_checkpointing. is deprecated"
            )  # peft asks transformers for it
            model = get_peft_model(tiny.build("glm4_moe_lite"), LoraConfig(target_modules=[target]))
        reasons = [reason for _, _, reason in latent_sites(model)]
        assert len(reasons) == 2
        assert all(("an adapter is wrapped around" in str(reason)) == refused for reason in reasons)


def test_what_has_no_children_is_no_latent_attention() -> None:
    assert not is_latent_attention(nn.Linear(2, 2))
    assert isinstance(latent_attention_of(nn.Linear(2, 2)), str)
