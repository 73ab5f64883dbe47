"""The last experts stay, the least recently used go first, and their memory goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from inference_pio.errors import StreamError
from inference_pio.streaming.expert_cache import ExpertCache
from inference_pio.streaming.origin import find_origins
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.units import Streamable
from tests.streaming.help import flip
from tests.streaming.mixture import mixture

PATH = "model.layers.0.mlp.experts"


class Layer:
    """The experts of one layer, with a reader and what they hold."""

    def __init__(self, folder: Path, capacity: int) -> None:
        model = mixture(layers=2)
        self.unit = Streamable(model).unit(PATH, 16)
        self.origins = find_origins([self.unit], {}, None, folder, dict)
        self.reader = Reader(2, self.origins.largest_piece)
        self.cache = ExpertCache(0, self.unit, self.origins.pieces_of(0, self.unit), 16, capacity)

    def bring(self, *numbers: int) -> tuple[int, int, int]:
        self.cache.users += 1
        found = self.cache.bring(numbers, self.reader)
        pairs = zip(self.unit.tensors, self.cache.shown(), strict=True)
        assert all(torch.equal(true[number], shown[number]) for true, shown in pairs for number in numbers)
        self.cache.users -= 1
        self.cache.left()
        return found

    def close(self) -> None:
        self.reader.close()
        assert self.origins.store is not None
        self.origins.store.close()


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    found = Layer(tmp_path / "root", capacity=3)
    yield found
    found.close()


def test_the_least_recently_used_go_first(layer: Layer) -> None:
    assert layer.bring(0, 1, 2)[:2] == (0, 3)
    assert layer.bring(0)[:2] == (1, 0)
    assert layer.bring(3)[:2] == (0, 1)
    assert list(layer.cache._held) == [2, 0, 3]
    assert layer.bring(1, 3)[:2] == (1, 1)
    assert list(layer.cache._held) == [0, 1, 3]


def test_a_call_of_more_than_stay_has_them_all_and_leaves_those_that_stayed(layer: Layer) -> None:
    layer.bring(4, 5, 6)
    assert layer.bring(*range(16))[:2] == (3, 13)
    assert list(layer.cache._held) == [4, 5, 6]


def test_numbers_of_no_expert_are_none(layer: Layer) -> None:
    assert layer.cache.bring([-1, 16, 99], layer.reader) == (0, 0, 0)


def test_what_is_read_are_the_chosen_experts_alone(layer: Layer) -> None:
    assert layer.bring(7)[2] == (96 * 64 + 64 * 48) * 4
    assert layer.bring(7)[2] == 0


def test_what_cannot_be_read_is_not_taken_for_there(layer: Layer) -> None:
    (file,) = layer.origins.files
    flip(file, 5)
    with pytest.raises(StreamError, match="damaged"):
        layer.cache.bring([0], layer.reader)
    flip(file, 5)
    assert layer.bring(0)[:2] == (0, 1)


def test_memory_of_experts_that_go_is_given_back() -> None:
    tensor = torch.zeros(64, 2**20, dtype=torch.uint8)
    unit = Streamable(torch.nn.ParameterDict({"x": torch.nn.Parameter(tensor, requires_grad=False)})).unit("", 64)
    cache = ExpertCache(0, unit, [], 64, 4)
    before = psutil.Process().memory_info().rss
    cache.bytes.fill_(1)
    assert psutil.Process().memory_info().rss - before > 60 * 2**20
    cache._held.update(dict.fromkeys(range(64)))
    cache.left()
    assert psutil.Process().memory_info().rss - before < 8 * 2**20
