"""One composed step gives the library's logits, bit for bit in plain operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio import get_optimization_manager
from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.host import HostOperations
from inference_pio.decoding.operations import Operations, PlainOperations
from inference_pio.decoding.step import logits_of_step
from inference_pio.formats.coded_residual import CodedResidual
from tests import tiny
from tests.decoding.conftest import COMPOSED, prompt


def both(
    name: str, dtype: torch.dtype, padded: int, operations: Operations, device: str = "cpu", model: Any = None
) -> Any:
    """A step behind a prompt, composed and by the library: float32 [rows, vocabulary] each."""
    model = tiny.build(name, dtype=dtype).to(device) if model is None else model
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    given = {name: tensor.to(device) for name, tensor in prompt(padded=padded).items()}
    tokens, mask = given["input_ids"], given["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    first = {"input_ids": tokens[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
    last = {"input_ids": tokens[:, -1:], "attention_mask": mask, "position_ids": positions[:, -1:]}
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        expected = model(**last, past_key_values=cache, use_cache=True).logits[:, -1].float()
        bucket = Bucket(model, decoder, 2, 300, ahead=1)
        bucket.clear(mask)
        model(**first, past_key_values=bucket.cache, use_cache=True)
        slots, span = bucket.slots, bucket.cache.span
        slots.begin(tokens[:, -1], positions[:, -1], length=8, made=0, starts=span.starts)
        return logits_of_step(decoder, operations, bucket), expected


@pytest.mark.parametrize("kind", [PlainOperations, HostOperations])
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPOSED)
def test_plain_operations_give_the_librarys_bits(
    name: str, dtype: torch.dtype, padded: int, kind: type[PlainOperations]
) -> None:
    found, expected = both(name, dtype, padded, kind())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", ["pivoted", "plain"])
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_plain_operations_give_the_bits_of_layers_in_two_factors(name: str, form: str) -> None:
    model = tiny.build(name)
    asked = {"form": form, "calibration": "none", "allocation": "uniform", "refuse_slower": False}
    get_optimization_manager().apply_optimizations(
        model, ["tensor_decomposition"], parameters={"tensor_decomposition": asked}
    )
    found, expected = both(name, torch.float32, 0, PlainOperations(), model=model)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "form", "residual"), [("qwen3", "pivoted", "int4"), ("glm4_moe_lite", "plain", "int8")]
)
def test_plain_operations_give_the_bits_of_codes_beside_factors(name: str, form: str, residual: str) -> None:
    model = tiny.build(name)
    asked = {"form": form, "residual": residual, "calibration": "none", "allocation": "uniform", "refuse_slower": False}
    get_optimization_manager().apply_optimizations(
        model, ["tensor_decomposition"], parameters={"tensor_decomposition": {**asked, "decomposition_ratio": 0.3}}
    )
    assert any(isinstance(module, CodedResidual) for module in model.modules())
    found, expected = both(name, torch.float32, 0, PlainOperations(), model=model)
    assert torch.equal(found, expected)
