"""Trained models say, token by token, with this cache what they say with the library's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from inference_pio.cache import PagedCache
from tests.cache.walks import both, check_sidecars
from tests.quality import reference_models
from tests.quality.reference_models import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_64_greedy_tokens_across_a_bucket_are_the_librarys(name: str) -> None:
    model, ids = reference_models.load(name), reference_models.draw(1, 2, 230)
    options: dict[str, Any] = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    ours = PagedCache.of(model, sidecars=True)
    said, theirs = (
        model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options)
        for cache in (ours, DynamicCache(config=model.config))
    )
    assert torch.equal(said, theirs)
    assert ours.report()["capacity"] == 512
    check_sidecars(ours)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_of_a_padded_batch_in_chunks_are_bit_by_bit_the_librarys(name: str, dtype: torch.dtype) -> None:
    ids = reference_models.draw(2, 2, 150)
    mask = torch.ones_like(ids)
    mask[0, :67] = 0
    ours, theirs = both(reference_models.load(name, dtype), {"input_ids": ids, "attention_mask": mask}, (65, 1, 63, -2))
    assert torch.equal(ours, theirs)
