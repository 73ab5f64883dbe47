"""Roles by structure: every tiny model against what a reader of its code would say."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, LlamaConfig

from inference_pio.anatomy.roles import roles_of
from inference_pio.formats.int8 import Int8Experts, Int8Linear
from tests import tiny

NORMS = {"input_layernorm": "norm", "post_attention_layernorm": "norm"}
GATED = {"mlp.gate_proj": "mlp.gate_up", "mlp.up_proj": "mlp.gate_up", "mlp.down_proj": "mlp.down"}
QKVO = {f"self_attn.{one}_proj": "attention.qkv" for one in "qkv"} | {"self_attn.o_proj": "attention.out"}
QK_NORMS = {"self_attn.q_norm": "norm", "self_attn.k_norm": "norm"}
EXPERTS = {"mlp.experts": "experts", "mlp.gate": "router"}
SHARED = {f"mlp.shared_experts.{name.removeprefix('mlp.')}": role for name, role in GATED.items()}
LATENT = {
    "self_attn.q_a_proj": "attention.qkv",
    "self_attn.q_a_layernorm": "norm",
    "self_attn.q_b_proj": "attention.qkv",
    "self_attn.kv_a_proj_with_mqa": "attention.qkv",
    "self_attn.kv_a_layernorm": "norm",
    "self_attn.kv_b_proj": "attention.qkv",
    "self_attn.o_proj": "attention.out",
}
GPT2 = {
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "mlp.gate_up",
    "mlp.c_proj": "mlp.down",
    "ln_1": "norm",
    "ln_2": "norm",
}
DENSE, SPARSE = QKVO | GATED | NORMS, QKVO | NORMS | EXPERTS
LAYERS: dict[str, list[dict[str, str]]] = {
    "llama": [DENSE] * 3,
    "gpt2": [GPT2] * 2,
    "qwen3": [DENSE | QK_NORMS] * 3,
    "qwen3_moe": [DENSE | QK_NORMS, SPARSE | QK_NORMS],
    "qwen3_vl": [DENSE | QK_NORMS] * 2,
    "glm4_moe": [DENSE | QK_NORMS, SPARSE | QK_NORMS | SHARED],
    "glm4_moe_lite": [LATENT | GATED | NORMS, LATENT | NORMS | EXPERTS | SHARED],
}
LAYER = re.compile(r"(?:layers|h)\.(\d+)\.(.+)")


@pytest.mark.parametrize("name", LAYERS)
def test_every_module_of_a_decoder_layer_has_its_role(name: str) -> None:
    found: list[dict[str, str]] = [{} for _ in LAYERS[name]]
    for path, role in roles_of(tiny.build(name)).items():
        if role != "vision" and (match := LAYER.search(path)):
            found[int(match[1])][match[2]] = role
    assert found == LAYERS[name]


@pytest.mark.parametrize("name", LAYERS)
def test_outside_the_layers_are_embeddings_a_norm_and_the_head(name: str) -> None:
    roles = roles_of(tiny.build(name))
    ends = {path.split(".")[-1]: role for path, role in roles.items() if role != "vision" and not LAYER.search(path)}
    if name == "gpt2":
        assert ends == {"wte": "embedding", "wpe": "embedding", "ln_f": "norm", "lm_head": "head"}
    else:
        assert ends == {"embed_tokens": "embedding", "norm": "norm", "lm_head": "head"}


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_every_module_that_holds_parameters_is_listed(name: str) -> None:
    model = tiny.build(name)
    holders = [path for path, module in model.named_modules() if list(module.parameters(recurse=False))]
    assert list(roles_of(model)) == holders


def test_all_of_the_vision_tower_is_vision_and_nothing_else_is() -> None:
    roles = roles_of(tiny.build("qwen3_vl"))
    assert {role for path, role in roles.items() if path.startswith("model.visual.")} == {"vision"}
    assert not [path for path, role in roles.items() if role == "vision" and "visual" not in path]
    assert set(roles_of(tiny.build("qwen3_vl").model.visual).values()) == {"vision"}


def test_a_plain_module_is_unknown_where_structure_is_silent() -> None:
    assert set(roles_of(tiny.build("plain")).values()) == {"unknown"}
    square = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.PReLU())
    assert list(roles_of(square).values()) == ["unknown", "unknown", "norm", "unknown"]
    assert roles_of(nn.Conv1d(1, 1, 1)) == {"": "unknown"}


def test_a_headless_or_classifying_model_has_no_head() -> None:
    assert "head" not in roles_of(tiny.build("llama").model).values()
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    classifier = AutoModelForSequenceClassification.from_config(config)
    assert roles_of(classifier)["score"] == "unknown"


def test_of_a_family_it_has_not_met_it_says_only_what_it_sees() -> None:
    config = BertConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    roles = roles_of(BertModel(config))
    assert roles["encoder.layer.0.attention.self.query"] == "attention.qkv"
    assert roles["encoder.layer.0.output.dense"] == "unknown"
    assert roles["pooler.dense"] == "unknown"


@pytest.mark.parametrize("name", ["llama", "gpt2", "glm4_moe_lite"])
def test_adapters_are_told_from_what_they_adapt(name: str) -> None:
    targets = {"llama": "(q|down)_proj", "gpt2": "(c_attn|c_fc)", "glm4_moe_lite": "(q_b|kv_b|o)_proj"}[name]
    check_adapted(name, LoraConfig(target_modules=rf".*\.{targets}"))


def test_adapters_on_fused_experts_are_told_too() -> None:
    tensors = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    check_adapted("glm4_moe", LoraConfig(target_modules=["o_proj"], target_parameters=tensors))


def check_adapted(name: str, config: LoraConfig) -> None:
    plain = roles_of(tiny.build(name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # peft sets it for Conv1D by itself
        adapted = roles_of(get_peft_model(tiny.build(name), config))
    prefix = "base_model.model."
    kept = {path.removeprefix(prefix).replace(".base_layer", ""): role for path, role in adapted.items()}
    assert {path: role for path, role in kept.items() if role != "adapter"} == plain
    added = [path for path, role in adapted.items() if role == "adapter"]
    assert added
    assert all(".lora_" in path for path in added)


def _compress(module: nn.Module) -> nn.Module | None:
    forms: list[tuple[bool, Callable[[nn.Module], nn.Module]]] = [
        (type(module).__name__ in ("Linear", "Conv1D"), Int8Linear.from_linear),
        (type(module).__name__.endswith("Experts"), Int8Experts.from_experts),
    ]
    return next((form(module) for fits, form in forms if fits), None)


@pytest.mark.parametrize("name", LAYERS)
def test_roles_stay_when_weights_are_compressed(name: str) -> None:
    model = tiny.build(name)
    before = roles_of(model)
    for path in before:
        if (small := _compress(model.get_submodule(path))) is not None:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, small)
    assert roles_of(model) == before


def test_roles_are_told_on_a_skeleton_too() -> None:
    model = tiny.build("glm4_moe")
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    assert roles_of(skeleton) == roles_of(model)
