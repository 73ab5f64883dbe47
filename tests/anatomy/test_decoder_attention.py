"""Attentions come apart into layers, norms and widths; others say what is in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from transformers import Ministral3Config, Ministral3ForCausalLM

from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads, attention_parts
from tests import tiny


def attention(name: str, layer: int = 1) -> Any:
    model: Any = tiny.build(name)
    return model.model.layers[layer].self_attn


def test_grouped_heads_tell_their_widths_and_norms() -> None:
    module = attention("qwen3")
    found = attention_parts(module)
    assert isinstance(found, GroupedAttention)
    assert (found.heads, found.key_heads, found.head_dim, found.scale) == (4, 2, 24, 24**-0.5)
    assert (found.query, found.value, found.out) == (module.q_proj, module.v_proj, module.o_proj)
    assert found.query_norm is not None
    assert found.query_norm.module is module.q_norm
    plain = attention_parts(attention("llama"))
    assert isinstance(plain, GroupedAttention)
    assert plain.query_norm is plain.key_norm is None


def test_latent_heads_tell_their_way_through_the_latent() -> None:
    module = attention("glm4_moe_lite")
    found = attention_parts(module)
    assert isinstance(found, LatentHeads)
    assert (found.sizes.heads, found.sizes.latent, found.sizes.rope) == (4, 32, 8)
    assert (found.sizes.nope, found.sizes.value) == (16, 20)
    assert found.query_into is module.q_a_proj
    assert found.interleaved is bool(module.config.rope_interleave)


def _window(module: Any) -> None:
    module.sliding_window = 64


def _no_scale(module: Any) -> None:
    del module.scaling


def _adapter(module: Any) -> None:
    wrapped = nn.Module()
    wrapped.base_layer = module.q_proj
    module.q_proj = wrapped


def _more(module: Any) -> None:
    module.gate = nn.Linear(2, 2)


def _misfit(module: Any) -> None:
    module.v_proj = nn.Linear(tiny.HIDDEN, 24)


def _other_rotation(module: Any) -> None:
    module.__class__ = type("Unturned", (type(module),), {"forward": lambda self, x: x})


def _wide_norm(module: Any) -> None:
    module.k_norm = nn.RMSNorm(48, eps=1e-6)


CHANGES: dict[str, Callable[[Any], None]] = {
    "sees a sliding window alone": _window,
    "does not tell how it scales": _no_scale,
    "an adapter is wrapped": _adapter,
    "is not made of queries, keys, values": _more,
    "layers do not fit each other": _misfit,
    "rotated by position": _other_rotation,
    "norms that are not over a head": _wide_norm,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_other_attentions_say_what_is_in_the_way(reason: str) -> None:
    module = attention("qwen3")
    CHANGES[reason](module)
    found = attention_parts(module)
    assert isinstance(found, str)
    assert reason in found


def _hooked(module: Any) -> None:
    module.kv_b_proj.register_forward_hook(lambda *given: None)


def _latent_more(module: Any) -> None:
    module.g_proj = nn.Linear(2, 2)


def _latent_norm(module: Any) -> None:
    module.q_a_layernorm = nn.LayerNorm(24)


LATENT_CHANGES: dict[str, Callable[[Any], None]] = {
    "carries hooks": _hooked,
    "holds more than a latent attention's layers": _latent_more,
    "no root-mean-square norm": _latent_norm,
}


@pytest.mark.parametrize("reason", LATENT_CHANGES)
def test_other_latent_attentions_say_it_too(reason: str) -> None:
    module = attention("glm4_moe_lite")
    LATENT_CHANGES[reason](module)
    found = attention_parts(module)
    assert isinstance(found, str)
    assert reason in found


def test_queries_that_grow_with_their_position_are_not_known() -> None:
    config = Ministral3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, sliding_window=None,
    )  # fmt: skip
    module: Any = Ministral3ForCausalLM(config).model.layers[0].self_attn
    assert attention_parts(module) == "Ministral3Attention scales its queries by their position"
