"""Walks: paths, linear layers, experts and attention modules of every tiny model."""

from __future__ import annotations

import warnings

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.walk import attention_modules, every_module, experts, linears, parent_of, path_of
from inference_pio.errors import InvalidModel
from tests import tiny


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_paths_lead_there_and_back(name: str) -> None:
    model = tiny.build(name)
    for path, module in model.named_modules():
        assert path_of(model, module) == path
        if path:
            parent, child = parent_of(model, path)
            assert parent.get_submodule(child) is module


def test_what_is_not_there_is_told() -> None:
    model = tiny.build("plain")
    with pytest.raises(InvalidModel, match="this ReLU is not a part of this Plain"):
        path_of(model, nn.ReLU())
    with pytest.raises(InvalidModel, match="itself has no parent"):
        parent_of(model, "")
    with pytest.raises(InvalidModel, match=r"no module 'fc1\.deeper'"):
        parent_of(model, "fc1.deeper")
    with pytest.raises(InvalidModel, match="no module 'fc9'"):
        parent_of(model, "fc9")


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_every_linear_layer_is_walked_once_with_its_role(name: str) -> None:
    model = tiny.build(name)
    walked = list(linears(model))
    expected = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    assert [(path, module) for path, module, _ in walked] == expected
    roles = {role for _, _, role in walked}
    assert roles == {"unknown"} if name == "plain" else {"attention.qkv", "attention.out", "mlp.down", "head"} <= roles


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("qwen3_moe", ["model.layers.1.mlp.experts"]),
        ("glm4_moe", ["model.layers.1.mlp.experts"]),
        ("glm4_moe_lite", ["model.layers.1.mlp.experts"]),
        ("llama", []),
        ("plain", []),
    ],
)
def test_fused_experts_are_walked(name: str, paths: list[str]) -> None:
    assert [(path, role) for path, _, role in experts(tiny.build(name))] == [(path, "experts") for path in paths]


def test_text_and_vision_attention_are_told_apart() -> None:
    found = {path: role for path, _, role in attention_modules(tiny.build("qwen3_vl"))}
    assert found == {
        "model.visual.blocks.0.attn": "vision",
        "model.visual.blocks.1.attn": "vision",
        "model.language_model.layers.0.self_attn": "attention",
        "model.language_model.layers.1.self_attn": "attention",
    }


@pytest.mark.parametrize(
    ("name", "count"), [("llama", 3), ("gpt2", 2), ("qwen3", 3), ("glm4_moe_lite", 2), ("plain", 0)]
)
def test_every_decoder_layer_has_one_attention_module(name: str, count: int) -> None:
    walked = list(attention_modules(tiny.build(name)))
    assert [role for _, _, role in walked] == ["attention"] * count
    assert all(hasattr(module, "config") for _, module, _ in walked)


class Doubled(nn.Linear):
    """A linear layer that does something else."""

    def forward(self, x):
        return super().forward(x) * 2


def test_layers_that_compute_otherwise_or_are_read_by_others_are_left_out() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4),
        Doubled(4, 4),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    )
    assert [path for path, _, _ in linears(model)] == ["0"]
    assert list(linears(nn.MultiheadAttention(4, 2))) == []


def test_experts_whose_tensors_an_adapter_reads_are_left_out() -> None:
    config = LoraConfig(target_modules=["o_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
        model = get_peft_model(tiny.build("glm4_moe"), config)
    assert list(experts(model)) == []
    assert sum(path.endswith("o_proj.base_layer") for path, _, _ in linears(model)) == 2


def test_a_walk_may_replace_what_it_walks() -> None:
    model = tiny.build("llama")
    for path, _, _ in linears(model):
        parent, name = parent_of(model, path)
        setattr(parent, name, nn.Identity())
    assert list(linears(model)) == []


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_every_module_is_found_once(name: str) -> None:
    model = tiny.build(name)
    found = every_module(model)
    assert len(found) == len(set(map(id, found)))
    assert set(map(id, found)) == set(map(id, model.modules()))
    shared = nn.ReLU()
    assert len(every_module(nn.Sequential(shared, nn.Sequential(shared, nn.Linear(1, 1))))) == 4
