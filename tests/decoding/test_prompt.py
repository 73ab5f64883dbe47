"""A prompt composed of a decoder's parts gives the library's logits and keeps what the library keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inference_pio import get_optimization_manager
from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.prompt import logits_of_prompt
from inference_pio.sparsity.adaptive_heads import AdaptiveHeads
from tests import tiny
from tests.decoding.conftest import prompt

GROUPED = ["llama", "qwen3", "qwen3_moe", "glm4_moe", "glm4_moe_lite"]
NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.05}


def composed(model: Any, tokens: Tensor, last: int, mask: Tensor | None = None) -> tuple[Tensor, Bucket]:
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    bucket = Bucket(model, decoder, len(tokens), 300, ahead=1)
    bucket.clear(mask)
    bucket.furnish()
    if bucket.starts is not None:
        bucket.slots.starts.copy_(bucket.starts)
    with torch.no_grad():
        return logits_of_prompt(decoder, PlainOperations(), bucket, tokens, torch.tensor([last])), bucket


def theirs(model: Any, tokens: Tensor, mask: Tensor | None = None) -> Any:
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True)


def near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    return torch.allclose(found.float(), expected.float(), rtol=0, atol=NEAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 2), (2, 9), (3, 130)])
def test_logits_and_cache_are_the_librarys(name: str, dtype: torch.dtype, rows: int, tokens: int) -> None:
    model = tiny.build(name, dtype=dtype)
    ids = prompt(rows, tokens)["input_ids"]
    found, bucket = composed(model, ids, tokens - 1)
    expected = theirs(model, ids)
    assert found.dtype == torch.float32
    assert near(found, expected.logits[:, -1], dtype)
    for number, layer in enumerate(expected.past_key_values.layers):
        keys, values = bucket.store(number).views(tokens)
        assert near(keys, layer.keys, dtype)
        assert near(values, layer.values, dtype)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention"])
@pytest.mark.parametrize("name", GROUPED)
def test_padded_rows_see_what_they_see_in_the_library(name: str, attention: str) -> None:
    model = tiny.build(name)
    if attention == "flash_attention":
        get_optimization_manager().apply_optimizations(model, [attention])
    given = prompt(3, 40, padded=17)
    given["attention_mask"][1, :39] = 0
    filled = torch.cat((given["input_ids"], given["input_ids"][:, -24:]), 1)
    found, bucket = composed(model, filled, 39, given["attention_mask"])
    expected = theirs(model, **{"tokens": given["input_ids"], "mask": given["attention_mask"]})
    assert near(found, expected.logits[:, -1], torch.float32)
    for number, layer in enumerate(expected.past_key_values.layers):
        for mine, other in zip(bucket.store(number).views(40), (layer.keys, layer.values), strict=True):
            for row, start in enumerate((17, 39, 0)):
                assert near(mine[row, :, start:], other[row, :, start:], torch.float32)


def test_what_stands_behind_a_prompt_changes_not_a_bit_of_it() -> None:
    model = tiny.build("qwen3")
    ids = prompt(2, 64)["input_ids"]
    others = ids.clone()
    others[:, 40:] = 1
    found = [composed(model, each, 39) for each in (ids, others)]
    assert torch.equal(found[0][0], found[1][0])
    for number in range(len(found[0][1].decoder.layers)):
        first, second = (bucket.store(number).views(40) for _, bucket in found)
        assert all(map(torch.equal, first, second))
    assert near(found[0][0], theirs(model, ids[:, :40]).logits[:, -1], torch.float32)


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe"])
def test_layers_in_codes_are_called(name: str) -> None:
    model = tiny.build(name)
    asked = {"format": "int8"}
    get_optimization_manager().apply_optimizations(
        model, ["tensor_compression"], parameters={"tensor_compression": asked}
    )
    ids = prompt(1, 20)["input_ids"]
    found, expected = composed(model, ids, 19)[0], theirs(model, ids).logits[:, -1]
    assert torch.cosine_similarity(found, expected).min() > 0.9999  # one row of codes is multiplied otherwise than many


def test_a_pattern_over_attention_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("qwen3")
    get_optimization_manager().apply_optimizations(
        model, ["adaptive_sparse_attention"], parameters={"adaptive_sparse_attention": {"dense_below": 0}}
    )
    asked = list[Any]()
    monkeypatch.setattr(AdaptiveHeads, "why_dense", lambda *given: asked.append(given) or "asked")
    ids = prompt(1, 20)["input_ids"]
    expected = theirs(tiny.build("qwen3"), ids).logits[:, -1]
    assert near(composed(model, ids, 19)[0], expected, torch.float32)
    assert asked == []
    theirs(model, ids)
    assert asked
