from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from inference_pio.sources import OpenedModel
from tests import tiny


def test_what_was_opened_cannot_be_rewritten() -> None:
    opened = OpenedModel(tiny.build("llama"), None, "llama", "memory", (), Path("/models/llama"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened.name = "other"  # type: ignore[misc]
