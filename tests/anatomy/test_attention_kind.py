"""Kinds of attention: what is told from attributes is what the function is called with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.attention_function import run_dense
from inference_pio.anatomy.attention_kind import attention_kinds, attention_shape
from inference_pio.anatomy.walk import attention_modules
from inference_pio.compat import add_attention_function, library_attention
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.attention_choice import Phase
from inference_pio.undo.journal import Journal
from tests import tiny

WATCHING = "inference_pio_test_watching"
SEEN: dict[int, HeadShape] = {}


def _watching(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any = None, **rest: Any) -> Any:
    SEEN[id(module)] = HeadShape(query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
    return library_attention()(module, query, key, value, attention_mask, **rest)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_the_heads_told_are_those_that_the_function_is_called_with(name: str) -> None:
    model = tiny.build(name)
    add_attention_function(WATCHING, _watching)
    journal = Journal(model)
    modules = {path: module for path, module, _ in attention_modules(model)}
    with journal.step("watch"):
        run_dense(journal, model, set(modules), WATCHING)
    SEEN.clear()
    tiny.logits(model, name)
    assert len(SEEN) == len(modules)
    assert {path: attention_shape(module) for path, module in modules.items()} == {
        path: SEEN[id(module)] for path, module in modules.items()
    }


def test_a_tower_that_packs_its_pictures_is_another_kind() -> None:
    model = tiny.build("qwen3_vl", torch.bfloat16)
    paths = {path for path, _, _ in attention_modules(model)}
    text, vision = sorted(attention_kinds(model, paths), key=lambda kind: kind.vision)
    assert (text.packed, vision.packed) == (False, True)
    assert vision.shown == (Phase.VISION,)
    assert Phase.VISION not in text.shown
    assert {kind.dtype for kind in (text, vision)} == {torch.bfloat16}
    assert sum(len(found) for found in attention_kinds(model, paths).values()) == len(paths)
    assert attention_kinds(model, set()) == {}


def test_heads_that_cannot_be_told_are_none() -> None:
    assert attention_shape(nn.Linear(2, 2)) is None
