"""Decoders come apart into their roles; those of other parts are told apart, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.anatomy.decoder_mlp import GatedMlp, Mixture
from tests import tiny

LAYERS = {
    "llama": [(GroupedAttention, GatedMlp)] * 3,
    "qwen3": [(GroupedAttention, GatedMlp)] * 3,
    "qwen3_moe": [(GroupedAttention, GatedMlp), (GroupedAttention, Mixture)],
    "qwen3_vl": [(GroupedAttention, GatedMlp)] * 2,
    "glm4_moe": [(GroupedAttention, GatedMlp), (GroupedAttention, Mixture)],
    "glm4_moe_lite": [(LatentHeads, GatedMlp), (LatentHeads, Mixture)],
}


def parts(model: nn.Module) -> Decoder:
    found = decoder_of(model)
    assert isinstance(found, Decoder), found
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_decoder_is_made_of_its_parts_in_order(name: str) -> None:
    model: Any = tiny.build(name)
    found = parts(model)
    assert [(type(layer.attention), type(layer.mlp)) for layer in found.layers] == LAYERS[name]
    assert found.embedding is model.get_input_embeddings()
    assert found.head is model.get_output_embeddings()
    assert [layer.attention.module.layer_idx for layer in found.layers] == list(range(len(found.layers)))
    assert found.position_rows == (3 if name == "qwen3_vl" else 1)
    held = {id(module) for module in found.modules()}
    decoder = model.model.language_model if name == "qwen3_vl" else model.model
    missing = [path for path, module in decoder.named_modules() if path and id(module) not in held]
    assert missing in (["layers", "rotary_emb"], ["rotary_emb", "layers"])


@pytest.mark.parametrize("name", LAYERS)
def test_a_skeleton_comes_apart_as_its_model_does(name: str) -> None:
    with torch.device("meta"):
        model = tiny._hugging_face(name, torch.float32, None)
    assert [type(layer.mlp) for layer in parts(model).layers] == [mlp for _, mlp in LAYERS[name]]


def _no_head(model: Any) -> None:
    model.get_output_embeddings = lambda: None


def _own_embedding(model: Any) -> None:
    model.model.embed_tokens = type("Scaled", (nn.Embedding,), {})(131, tiny.HIDDEN)


def _growing_angles(model: Any) -> None:
    model.model.rotary_emb.rope_type = "dynamic"


def _third_norm(model: Any) -> None:
    model.model.layers[1].extra_norm = nn.RMSNorm(tiny.HIDDEN)


def _nested(model: Any) -> None:
    model.model.layers[1] = nn.ModuleList([model.model.layers[1]])


def _no_last_norm(model: Any) -> None:
    model.model.norm = None


CHANGES: dict[str, Callable[[Any], None]] = {
    "it has no head that leads to its vocabulary": _no_head,
    "its embedding is none of torch's own, or it has none": _own_embedding,
    "its angles (rope_type='dynamic') change with the length of the text": _growing_angles,
    "LlamaDecoderLayer is not attention and MLP, each behind a norm": _third_norm,
    "its layers are not all in one list": _nested,
    "its decoder lacks a last norm (norm) or a module of angles (rotary_emb)": _no_last_norm,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_decoder_of_other_parts_is_told(reason: str) -> None:
    model = tiny.build("llama")
    CHANGES[reason](model)
    assert decoder_of(model) == reason


def test_what_is_no_decoder_is_told() -> None:
    assert decoder_of(tiny.build("plain")) == "it has no attention that goes through the library's attention interface"
    assert "lacks a last norm" in str(decoder_of(tiny.build("gpt2")))
