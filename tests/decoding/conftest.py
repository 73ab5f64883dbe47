"""A tiny model that an engine decodes for, and the library's own answer to hold it against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_pio.decoding.engine import Engine
from inference_pio.decoding.host import HostOperations
from inference_pio.decoding.recordable import RecordableOperations
from inference_pio.decoding.takeover import take_over
from inference_pio.kernels.int4 import words_of
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.kernels.triton.conftest import interpreted

__all__ = ["interpreted"]
COMPOSED = [name for name in tiny.HF_NAMES if name != "gpt2"]


class Reading(HostOperations):
    """What a GPU's operations do with prompts, by torch on a CPU."""

    reads_prompts = True

    def of_a_copy(self) -> HostOperations:
        return Reading()


class Recorded(RecordableOperations):
    """The same where steps ask no pattern, as those on a GPU."""

    reads_prompts = True


def in_words(module: Any) -> Any:
    """A compressed module whose int4 codes lie as a GPU reads them, which ours does by itself on one."""
    for name, codes in list(module.codes()):
        module._buffers[name] = words_of(module.portable(codes))
    return module


@dataclass
class Taken:
    """A model whose `generate` an engine has taken over, and the same model without one."""

    model: Any
    plain: Any
    engine: Engine
    journal: Journal

    def both(self, *given: Any, seed: int = 0, **options: Any) -> tuple[Any, Any]:
        """What the engine says, and what the library says, from one random state."""
        found = []
        for model in (self.model, self.plain):
            torch.manual_seed(seed)
            found.append(model.generate(*given, **{"pad_token_id": 0, **options}))
        return found[0], found[1]


def taken(name: str = "qwen3", dtype: torch.dtype = torch.float32, operations: Any = None) -> Taken:
    model, plain = (tiny.build(name, dtype=dtype) for _ in range(2))
    journal, engine = Journal(model), Engine(operations or HostOperations())
    with journal.step("take over"):
        take_over(journal, model, engine)
    return Taken(model, plain, engine, journal)


def prompt(rows: int = 2, tokens: int = 9, padded: int = 0, seed: int = 1) -> dict[str, Tensor]:
    """Tokens for `generate`; the first row begins behind so many of padding."""
    ids = torch.randint(1, 120, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def take() -> Callable[..., Taken]:
    return taken
