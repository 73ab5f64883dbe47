"""Decoder layers that norm before each part are told in every family; those that do more keep their forward."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy import fused_layer as room
from inference_pio.anatomy.call_guards import put_forward
from inference_pio.anatomy.fused_layer import layer_forward, looks_like_a_layer, why_no_fused_layer
from inference_pio.anatomy.fused_norm import norm_forward
from inference_pio.undo.journal import Journal
from tests import tiny

FAMILIES = [name for name in tiny.HF_NAMES if name != "gpt2"]
OTHERS = {"gemma2": "pre_feedforward_layernorm", "granite": "residual_multiplier", "glm4": "post_self_attn_layernorm"}


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if looks_like_a_layer(module)]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_the_library_are_known(name: str) -> None:
    found = layers_of(tiny.build(name))
    assert len(found) == (3 if name in ("llama", "qwen3") else 2)
    assert [why_no_fused_layer(layer) for layer in found] == [None] * len(found)


@pytest.mark.parametrize("family", OTHERS)
def test_layers_that_do_more_are_told(family: str) -> None:
    library = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    (name,) = [name for name in vars(library) if name.endswith("DecoderLayer")]
    config = getattr(library, name.replace("DecoderLayer", "Config"))(
        hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2
    )
    layer = getattr(library, name)(config, 0)
    assert looks_like_a_layer(layer)
    assert OTHERS[family] in (why_no_fused_layer(layer) or "")


def test_a_norm_of_another_kind_is_told() -> None:
    (layer, *_) = layers_of(tiny.build("llama"))
    layer.post_attention_layernorm = nn.LayerNorm(tiny.HIDDEN)
    assert (why_no_fused_layer(layer) or "").startswith("the norm after its attention is passed over: it is no norm")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_has_the_same_bits(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(name, dtype)
    before, calls, kernel = tiny.logits(model, name), [], room.added_and_normed

    def counted(*given: Any) -> Any:
        calls.append(given[0])
        return kernel(*given)

    monkeypatch.setattr(room, "added_and_normed", counted)
    journal = Journal(model)
    with journal.step("fuse"):
        for layer in layers_of(model):
            put_forward(journal, layer.post_attention_layernorm, norm_forward)
            put_forward(journal, layer, layer_forward)
    assert torch.equal(tiny.logits(model, name), before)
    assert len(calls) == len(layers_of(model)) * (4 if name == "qwen3_vl" else 2)
    given = tiny.inputs(name, model)
    calls.clear()
    model(**given)
    assert calls == []  # gradients are wanted: the library's own forward
