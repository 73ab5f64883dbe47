"""The same walk of a model with two caches: chunks of a prompt, crops, greedy steps, and the logits of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from inference_pio.cache import PagedCache
from inference_pio.kernels.page_summary import naive_page_summary


def prompt(rows: int, tokens: int, padding: Sequence[int] = (), seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens, row by row padded on the left."""
    ids = torch.randint(1, 120, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        ids[row, :count], mask[row, :count] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def walk(model: Any, cache: Cache, given: dict[str, torch.Tensor], steps: Sequence[int], new: int = 3) -> torch.Tensor:
    """Feed the prompt in chunks, a negative step cropping so many tokens; then go on greedily: logits [B, all, V]."""
    found, at = [], 0
    for step in [*steps, given["input_ids"].shape[1] - sum(steps)]:
        if step < 0:
            cache.crop(step)
            at += step
            continue
        if step:
            found.append(_forward(model, cache, given, at, at + step))
        at += step
        check_sidecars(cache)
    for _ in range(new):
        token = found[-1][:, -1:].argmax(-1)
        given = {
            "input_ids": torch.cat([given["input_ids"], token], 1),
            "attention_mask": torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1),
        }
        found.append(_forward(model, cache, given, given["input_ids"].shape[1] - 1, given["input_ids"].shape[1]))
        check_sidecars(cache)
    return torch.cat(found, 1)


def _forward(model: Any, cache: Cache, given: dict[str, torch.Tensor], begin: int, end: int) -> torch.Tensor:
    mask = given["attention_mask"][:, :end]
    ids = given["input_ids"][:, begin:end]
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    return logits


def both(model: Any, given: dict[str, torch.Tensor], steps: Sequence[int] = (), **options: Any) -> list[torch.Tensor]:
    """The logits of a walk with our cache and with the library's."""
    ours = PagedCache.of(model, sidecars=True, attention_mask=given["attention_mask"], **options)
    return [walk(model, cache, given, steps) for cache in (ours, DynamicCache(config=model.config))]


def check_sidecars(cache: Cache) -> None:
    """Every sidecar is what the stored keys give from the definition."""
    for layer in cache.paged_layers if isinstance(cache, PagedCache) else ():
        if layer.sidecar and layer.store:
            wanted = naive_page_summary(layer.store.scored, layer.length, layer.span.starts)
            for found, plain in zip(layer.sidecar.tensors, (wanted.minimum, wanted.maximum, wanted.mean), strict=True):
                torch.testing.assert_close(found.float(), plain, rtol=1e-5, atol=1e-5)
