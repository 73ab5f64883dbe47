"""A composed prompt that computes anything else than the library is found out before it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inference_pio import get_optimization_manager
from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding import prompt as prompt_module
from inference_pio.decoding import prompt_check
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.prompt_check import why_prompt_differs
from tests import tiny

COMPOSED = ["llama", "qwen3", "qwen3_moe", "glm4_moe", "glm4_moe_lite"]


def why(model: Any) -> str | None:
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    return why_prompt_differs(model, decoder, PlainOperations())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", COMPOSED)
def test_a_true_prompt_passes_and_leaves_the_model_as_it_was(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name, dtype=dtype)
    before = tiny.logits(model, name)
    chance = torch.get_rng_state()
    assert why(model) is None
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(tiny.logits(model, name), before)


@pytest.mark.parametrize("format", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("name", COMPOSED)
def test_so_it_does_over_codes(name: str, format: str) -> None:
    model = tiny.build(name, dtype=torch.bfloat16)
    asked = {"format": format} | ({"group_size": 32} if format == "int4" else {})
    manager = get_optimization_manager()
    manager.apply_optimizations(model, ["tensor_compression"], parameters={"tensor_compression": asked})
    assert why(model) is None


def test_what_is_kept_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = prompt_check.logits_of_prompt

    def spoils(decoder: Any, operations: Any, bucket: Any, *given: Any) -> Tensor:
        found = inner(decoder, operations, bucket, *given)
        bucket.store(1).values.neg_()
        return found

    monkeypatch.setattr(prompt_check, "logits_of_prompt", spoils)
    assert "differs from the library's (cosine -1.0" in str(why(tiny.build("llama")))


FAULTS: dict[str, Any] = {
    "no rotation": lambda monkeypatch: monkeypatch.setattr(
        prompt_module, "norm_rotate", lambda query, key, *given, **how: (query.transpose(1, 2), key.transpose(1, 2))
    ),
    "keys a place too far": lambda monkeypatch: monkeypatch.setattr(
        prompt_module._Keeping, "update", lambda self, key, value: (key.roll(1, 2), value)
    ),
    "nothing kept": lambda monkeypatch: monkeypatch.setattr(
        prompt_module._Keeping, "update", lambda self, key, value: (key, value)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_wrong_prompt_is_told(fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama", dtype=dtype)
    FAULTS[fault](monkeypatch)
    assert "differs from the library's" in str(why(model))


def test_a_layer_of_noughts_is_its_own_like() -> None:
    model: Any = tiny.build("qwen3")
    model.model.layers[1].self_attn.v_proj.weight.data.zero_()
    assert why(model) is None


def test_padding_that_is_not_hidden_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    monkeypatch.setattr(prompt_module, "left_padding_mask", lambda starts, length, queries: None)
    assert "differs from the library's" in str(why(model))


def test_a_model_that_amplifies_rounding_is_held_to_what_it_does_to_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    steady: Any = tiny.build("qwen3", dtype=torch.bfloat16)
    nervous: Any = tiny.build("qwen3", dtype=torch.bfloat16)
    for layer in nervous.model.layers:  # attention that turns from token to token at the least push
        layer.self_attn.q_norm.weight.data.mul_(70)
        layer.self_attn.o_proj.weight.data.mul_(30)
    inner = prompt_check.logits_of_prompt

    def off(*given: Any) -> Tensor:
        found = inner(*given)
        noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
        return found + 0.2 * found.norm(dim=-1, keepdim=True) * noise / noise.norm(dim=-1, keepdim=True)

    assert why(nervous) is None
    monkeypatch.setattr(prompt_check, "logits_of_prompt", off)  # a cosine of about 0.98
    assert "differs" in str(why(steady))
    assert why(nervous) is None
