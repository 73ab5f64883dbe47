"""A step that computes anything else than the library is found out before it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding.check import why_step_differs
from inference_pio.decoding.operations import PlainOperations
from tests import tiny
from tests.decoding.conftest import COMPOSED


def why(model: Any, operations: Any = None) -> str | None:
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    return why_step_differs(model, decoder, operations or PlainOperations())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPOSED)
def test_a_true_step_passes_and_leaves_the_model_as_it_was(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name, dtype=dtype)
    before = tiny.logits(model, name)
    chance = torch.get_rng_state()
    assert why(model) is None
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(tiny.logits(model, name), before)


class NoResidual(PlainOperations):
    def project(self, x: Tensor, linears: Any, *, residual: Tensor | None = None, **how: Any) -> Tensor:
        return super().project(x, linears, **how)


class NoRotation(PlainOperations):
    def attend(self, attention: Any, qkv: Tensor, bucket: Any, layer: int) -> Tensor:
        bucket.slots.positions.zero_()
        return super().attend(attention, qkv, bucket, layer)


@pytest.mark.parametrize("wrong", [NoResidual, NoRotation])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_step_is_told(wrong: Any, dtype: torch.dtype) -> None:
    told = why(tiny.build("llama", dtype=dtype), wrong())
    assert told is not None
    assert "gives other logits than the library (cosine" in told


def test_a_multiplier_that_no_part_tells_of_is_found() -> None:
    model: Any = tiny.build("llama")
    kind = type(model)
    head = {"forward": lambda self, *given, **how: _softened(kind.forward(self, *given, **how))}
    model.__class__ = type("Softened", (kind,), head)
    told = why(model)
    assert told is not None
    assert "other logits" in told


def test_layers_that_forget_are_told() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(**sizes, num_key_value_heads=2, vocab_size=128, sliding_window=4)
    told = why(MistralForCausalLM(config).eval())
    assert told == "its layers do not all keep all of their keys and values"


def _softened(output: Any) -> Any:
    output.logits = torch.tanh(output.logits)
    return output


class OffBy(PlainOperations):
    """Logits that carry noise of a size."""

    def __init__(self, size: float) -> None:
        self.size = size

    def logits(self, x: Tensor, norm: Any, head: Any) -> Tensor:
        found = super().logits(x, norm, head)
        chance = torch.Generator().manual_seed(1)
        return found + self.size * found.std() * torch.randn(found.shape, generator=chance)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 0.007), (torch.bfloat16, 0.15)])
def test_a_steady_model_is_allowed_no_more_than_its_dtype_rounds(dtype: torch.dtype, off: float) -> None:
    assert "other logits" in (why(tiny.build("qwen3", dtype=dtype), OffBy(off)) or "")


def test_a_model_that_amplifies_rounding_is_held_to_what_it_does_to_its_own_logits() -> None:
    steady, nervous = (tiny.build("qwen3", dtype=torch.bfloat16) for _ in range(2))
    for layer in nervous.model.layers:  # attention that turns from token to token at the least push
        layer.self_attn.q_norm.weight.data.mul_(70)
        layer.self_attn.o_proj.weight.data.mul_(30)
    assert why(nervous) is None
    off = OffBy(0.2)  # a cosine of about 0.98
    assert "other logits" in (why(steady, off) or "")
    assert why(nervous, off) is None
    assert "other logits" in (why(nervous, OffBy(1.0)) or "")


@pytest.mark.parametrize("factor", [0.25, 1.2])
def test_logits_of_another_size_are_told(factor: float) -> None:
    model: Any = tiny.build("llama")
    kind = type(model)

    def forward(self: Any, *given: Any, **how: Any) -> Any:
        out = kind.forward(self, *given, **how)
        out.logits = out.logits * factor
        return out

    model.__class__ = type("Scaled", (kind,), {"forward": forward})
    assert "gives other logits than the library" in str(why(model))
