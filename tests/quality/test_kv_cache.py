"""Trained models that read their own past from codes: what they lose, by perplexity and by needles."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutput

from inference_pio.cache import CodedCache
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure import Quality, Reference, compare
from inference_pio.measure.needles import needle_grid, needle_questions
from tests.quality import reference_models
from tests.quality.reference_models import NAMES
from tests.quality.test_tensor_compression import EACH_DRAW, in_turn
from tests.sweep import LONG_ONES, in_its_turn

CHUNK = 64
LENGTH = 2048
"""Tokens of a window: all but the first two hundred of them have most of what they see in codes."""
BARS = {"int8": (1.001, 2e-4), "int4": (1.01, 6e-3), "fp8": (1.003, 2e-3)}
"""Perplexity ratio and divergence, nats a token, in float32, where nothing else rounds."""


class ReadsItsCache(nn.Module):
    """A model that is fed in chunks, so that all behind the first one is read from a cache."""

    def __init__(self, model: Any, kv_format: str | None = None, chunk: int = CHUNK) -> None:
        super().__init__()
        self.model, self.kv_format, self.chunk = model, kv_format, chunk
        self.eval()

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        self.cache = (
            CodedCache.of(self.model, self.kv_format) if self.kv_format else DynamicCache(config=self.model.config)
        )
        found = [self.model(part, past_key_values=self.cache).logits for part in input_ids.split(self.chunk, 1)]
        return CausalLMOutput(logits=torch.cat(found, 1))


@functools.cache
def loaded(name: str) -> Any:
    return reference_models.load(name, torch.float32)


@functools.cache
def recorded(name: str, number: int) -> Reference:
    return Reference.record(ReadsItsCache(loaded(name)), reference_models.draw(number, 2, LENGTH))


def judged(name: str, changed: nn.Module, number: int) -> Quality:
    return compare(recorded(name, number), changed)


def is_within(found: Quality, kv_format: str) -> bool:
    ratio, divergence = BARS[kv_format]
    return found.perplexity_ratio <= ratio and found.kl_nats_per_token <= divergence


@EACH_DRAW
@pytest.mark.parametrize("kv_format", BARS)
@pytest.mark.parametrize("name", in_turn("qwen3", "glm4_moe_lite"))
def test_perplexity_stays_where_it_was(name: str, kv_format: str, number: int) -> None:
    reader = ReadsItsCache(loaded(name), kv_format)
    found = judged(name, reader, number)
    assert is_within(found, kv_format), found
    report = reader.cache.report()  # type: ignore[operator]
    assert report["tokens_coded"] == LENGTH - CHUNK
    assert report["layers"] == {kv_format: len(reader.cache.layers)}  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("kv_format", BARS)
def test_codes_read_with_the_steps_of_their_neighbours_fail_that_bar(
    kv_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof that the test above can fail."""
    from inference_pio.cache import coded_pages

    read = coded_pages.page_values
    dimension = -1 if kv_format != "fp8" else -2

    def shifted(parts: Any, form: Any, dtype: torch.dtype) -> torch.Tensor:
        return read((parts[0], parts[1].roll(1, dimension), *parts[2:]), form, dtype)

    monkeypatch.setattr(coded_pages, "page_values", shifted)
    assert not is_within(judged("qwen3", ReadsItsCache(loaded("qwen3"), kv_format), 0), kv_format)


@in_its_turn(9, of=LONG_ONES)
@pytest.mark.parametrize("kv_format", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", in_turn("qwen3"))
def test_needles_are_found_where_they_were(name: str, kv_format: str) -> None:
    asked: dict[str, Any] = {
        "lengths": [4096], "depths": [0.1, 0.6], "per_cell": 2, "form": reference_models.needle_format(),
    }  # fmt: skip
    model = reference_models.load(name)
    grids = [
        needle_grid(reader, reference_models.tokenizer(), reference_models.held_out_text(), **asked)
        for reader in (ReadsItsCache(model, chunk=256), ReadsItsCache(model, kv_format, chunk=256))
    ]
    assert grids[0] == grids[1]
    assert grids[0].total.share == 1.0


@pytest.mark.parametrize("name", in_turn("qwen3", among=[name for name in NAMES if name != "qwen3_vl"]))
def test_generate_answers_from_codes_when_the_optimization_is_applied(name: str) -> None:
    model, manager = reference_models.load(name), ModularOptimizationManager()
    haystack = torch.tensor(reference_models.tokenizer()(reference_models.held_out_text(), verbose=False)["input_ids"])
    (question,) = needle_questions(
        reference_models.tokenizer(), haystack, 2000, 0.3, 1, 0, reference_models.needle_format()
    )
    ids = torch.cat([question.inputs["input_ids"], torch.tensor([question.answer])[:, :-1]], 1)
    manager.apply_optimizations(
        model, ["tensor_compression"], parameters={"tensor_compression": {"kv_cache": "int8", "targets": []}}
    )
    said = model.generate(ids, prefill_chunk_size=500, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
    assert said.past_key_values.report()["tokens_coded"] > 1800
    assert int(said.sequences[0, -1]) == question.answer[-1]
