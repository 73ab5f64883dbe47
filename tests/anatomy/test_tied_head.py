"""A tied head is told by the one Parameter, and what else hangs on it is a reason to leave both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.tied_head import TiedHead, tied_head
from tests import tiny

TIED = {"qwen3": "model.embed_tokens", "qwen3_vl": "model.language_model.embed_tokens", "gpt2": "transformer.wte"}


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_the_tied_ends_of_every_model_are_found(name: str) -> None:
    assert tied_head(tiny.build(name)) == (TiedHead(TIED[name], "lm_head", None) if name in TIED else None)


def test_equal_weights_are_no_tie() -> None:
    model: Any = tiny.build("qwen3")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert tied_head(model) is None


def test_what_hangs_on_the_embedding_is_told() -> None:
    model: Any = tiny.build("qwen3")
    model.other = nn.Linear(64, 128, bias=False)
    model.other.weight = model.lm_head.weight
    assert "a Linear shares the weight" in str(left(model))
    del model.other
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: None)
    assert "hooks" in str(left(model))
    handle.remove()
    model.model.embed_tokens.forward = lambda ids: torch.zeros(1)
    assert "overridden" in str(left(model))


def left(model: nn.Module) -> str | None:
    found = tied_head(model)
    assert found is not None
    return found.left
