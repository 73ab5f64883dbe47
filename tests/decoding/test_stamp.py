"""Every edit of a model moves its stamp."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.attention_function import OF_PATTERN
from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding.stamp import stamp_of, why_not_replaced
from tests import tiny


def _replace(model: Any) -> None:
    model.model.layers[1].mlp.up_proj = nn.Linear(tiny.HIDDEN, 100, bias=False)


def _rebind(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.zeros(100, tiny.HIDDEN))


def _rehouse(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data = weight.data.clone()


def _cast(model: Any) -> None:
    model.to(torch.bfloat16)


def _forward(model: Any) -> None:
    model.model.layers[0].mlp.forward = lambda x: x


def _forward_of_the_stack(model: Any) -> None:
    model.model.forward = lambda **given: None


def _slice(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(weight[:50], requires_grad=False)
    assert model.model.layers[1].mlp.up_proj.weight.data_ptr() == weight.data_ptr()


def _transpose(model: Any) -> None:
    weight = model.model.layers[1].self_attn.q_proj.weight
    assert weight.shape[0] == weight.shape[1]
    model.model.layers[1].self_attn.q_proj.weight = nn.Parameter(weight.t(), requires_grad=False)


def _attention(model: Any) -> None:
    model.set_attn_implementation("eager")


def _fewer(model: Any) -> None:
    del model.model.layers[2]


def _angles(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def _other_angles(model: Any) -> None:
    model.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)


def _scale(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 0.5


def _epsilon(model: Any) -> None:
    model.model.layers[1].input_layernorm.variance_epsilon = 0.5


def _class(model: Any) -> None:
    class Doubled(nn.Linear):
        """Another class of layer."""

    model.model.layers[1].mlp.up_proj.__class__ = Doubled


def _vocabulary(model: Any) -> None:
    model.resize_token_embeddings(64)


EDITS: list[Callable[[Any], None]] = [
    _replace, _rebind, _rehouse, _slice, _transpose, _cast, _forward, _forward_of_the_stack,
    _attention, _fewer, _angles, _other_angles, _scale, _epsilon, _class, _vocabulary,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda one: one.__name__)
def test_an_edit_moves_the_stamp(edit: Callable[[Any], None]) -> None:
    model = tiny.build("llama")
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    before = stamp_of(decoder, model)
    assert stamp_of(decoder, model) == before
    assert before.is_of(model)
    edit(model)
    assert not before.is_of(model)
    assert stamp_of(decoder, model) != before


def test_an_edit_in_place_needs_no_new_step() -> None:
    model: Any = tiny.build("llama")
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    before = stamp_of(decoder, model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
    assert before.is_of(model)
    assert stamp_of(decoder, model) == before


def test_forwards_of_ours_may_be_stood_in_for_and_others_not() -> None:
    model: Any = tiny.build("llama")
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    assert why_not_replaced(model, decoder) is None

    def forward(x: Any) -> Any:
        return x

    model.model.norm.forward = forward
    assert why_not_replaced(model, decoder) == "the forward of LlamaRMSNorm is overridden"
    ours = types.FunctionType(forward.__code__, {"__name__": "inference_pio.anatomy.somewhere"})
    model.model.norm.forward = types.MethodType(ours, model.model.norm)
    assert why_not_replaced(model, decoder) is None
    handle = model.register_forward_pre_hook(lambda *given: None)
    assert "LlamaForCausalLM carries hooks" in str(why_not_replaced(model, decoder))
    handle.remove()
    handle = model.model.register_forward_hook(lambda *given: None)
    assert "LlamaModel carries hooks" in str(why_not_replaced(model, decoder))
    handle.remove()
    handle = model.model.rotary_emb.register_forward_hook(lambda *given: None)
    assert "LlamaRotaryEmbedding carries hooks" in str(why_not_replaced(model, decoder))
    handle.remove()
    model.model.forward = forward
    assert why_not_replaced(model, decoder) == "the forward of LlamaModel is overridden"
    del model.model.forward
    handle = model.model.layers[0].self_attn.register_forward_pre_hook(_of_a_pattern)
    assert "LlamaAttention carries hooks" in str(why_not_replaced(model, decoder))
    assert why_not_replaced(model, decoder, asks_patterns=False) is None
    handle.remove()
    assert why_not_replaced(model.train(), decoder) == "the model is in training mode"


def _of_a_pattern(module: Any, given: Any) -> None:
    """A hook that tells a pattern what its next call is about."""


setattr(_of_a_pattern, OF_PATTERN, True)
