"""A slot holds one unit at a time; a failed one leaves it empty, an unwanted one is given up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from inference_pio.errors import StreamError
from inference_pio.streaming.open_file import OpenFile
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.slot import Slot
from inference_pio.streaming.units import Streamable
from tests import tiny
from tests.streaming.help import flip, weights_in


@pytest.fixture
def slot() -> Slot:
    streamable = Streamable(tiny.build("llama"))
    units = [streamable.unit(f"model.layers.{number}") for number in range(3)]
    return Slot(max(unit.room for unit in units), units)


def test_a_slot_is_free_until_it_is_filled_and_while_nobody_uses_it(slot: Slot, tmp_path: Path) -> None:
    reader = Reader(1, 1000)
    assert slot.free
    slot.ready()
    slot.fill(1, weights_in(tmp_path)[1], reader)
    slot.ready()
    assert (slot.free, slot.unit) == (True, 1)
    slot.users = 1
    assert not slot.free
    assert len(slot.shown()) == 9
    reader.close()


def test_what_cannot_be_read_leaves_it_empty(slot: Slot, tmp_path: Path) -> None:
    reader = Reader(1, 1000)
    file, pieces = weights_in(tmp_path)
    flip(file, 500)
    slot.fill(1, pieces, reader)
    with pytest.raises(StreamError, match="damaged"):
        slot.ready()
    assert (slot.free, slot.unit) == (True, None)
    slot.ready()
    reader.close()


def test_what_is_on_its_way_is_given_up_for_what_is_wanted(
    slot: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = OpenFile.read
    monkeypatch.setattr(OpenFile, "read", lambda *given: (time.sleep(0.02), read(*given)))
    reader = Reader(1, 1000)
    slot.fill(1, weights_in(tmp_path, seed=1)[1], reader)
    slot.fill(2, weights_in(tmp_path, seed=2)[1], reader)
    slot.ready()
    assert slot.unit == 2
    expected = torch.zeros_like(slot.bytes[:10_000])
    reader.read_now(weights_in(tmp_path, seed=2)[1], expected)
    assert torch.equal(slot.bytes[:10_000], expected)
    reader.close()
