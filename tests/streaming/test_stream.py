"""Units come just ahead of the computation, in any order and for any thread; what cannot be read is an error there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from inference_pio.errors import StreamError
from inference_pio.streaming.open_file import OpenFile
from inference_pio.streaming.origin import find_origins
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.stream import Stream
from inference_pio.streaming.units import Streamable
from inference_pio.undo.tensors import point, stand_in_for
from tests import tiny
from tests.streaming.help import flip


class Streamed:
    """A tiny model's layers, put away by hand, with what they hold kept beside."""

    def __init__(self, folder: Path, slots: int) -> None:
        self.model = tiny.build("llama")
        streamable = Streamable(self.model)
        units = [streamable.unit(f"model.layers.{number}") for number in range(3)]
        self.origins = find_origins(units, {}, None, folder, dict)
        self.true = [[tensor.detach().clone() for tensor in unit.tensors] for unit in units]
        for unit in units:
            for tensor in unit.tensors:
                point(tensor, stand_in_for(tensor))
        self.reader = Reader(2, self.origins.largest_piece)
        pieces = [self.origins.pieces_of(number, unit) for number, unit in enumerate(units)]
        self.stream = Stream(units, pieces, self.reader, slots)
        self.stream.begin()

    def is_true(self, number: int) -> bool:
        pairs = zip(self.stream.units[number].tensors, self.true[number], strict=True)
        return all(torch.equal(tensor, true) for tensor, true in pairs)

    def is_at_rest(self, number: int) -> bool:
        return all(bool(tensor.isnan().all()) for tensor in self.stream.units[number].tensors)

    def close(self) -> None:
        self.stream.close()
        assert self.origins.store is not None
        self.origins.store.close()


@pytest.fixture(params=[1, 2, 3])
def streamed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Streamed]:
    found = Streamed(tmp_path / "root", request.param)
    yield found
    found.close()
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [0, 0, 2, 2], [1, 0, 2, 0]])
def test_a_unit_is_true_while_it_computes_and_at_rest_before_and_after(streamed: Streamed, order: list[int]) -> None:
    for number in order * 3:
        streamed.stream.enter(number)
        assert streamed.is_true(number)
        assert all(streamed.is_at_rest(other) for other in range(3) if other != number)
        streamed.stream.leave(number)
        assert streamed.is_at_rest(number)
    assert streamed.stream.counts.units == len(order) * 3


def test_units_that_follow_one_another_are_there_in_time(tmp_path: Path) -> None:
    streamed = Streamed(tmp_path / "root", 2)
    for _ in range(4):
        for number in range(3):
            streamed.stream.enter(number)
            time.sleep(0.05)  # it computes
            streamed.stream.leave(number)
    counts = streamed.stream.counts
    assert (counts.units, counts.in_time) == (12, 11)  # all but the very first
    assert counts.read_bytes <= 14 * 126_464
    streamed.close()


def test_threads_in_different_units_do_not_meet(streamed: Streamed) -> None:
    failed: list[str] = []
    inside = threading.Barrier(3)

    class Layer(nn.Module):  # whoever computes is inside of a module
        def forward(self, number: int, first: int) -> None:
            streamed.stream.enter(number)
            time.sleep(0.001)
            if not streamed.is_true(number):
                failed.append(f"unit {number} of thread {first}")
            streamed.stream.leave(number)

    def run(first: int) -> None:
        inside.wait()
        for step in range(30):
            Layer()((first + step) % 3, first)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert not any(thread.is_alive() for thread in threads)
    assert all(streamed.is_at_rest(number) for number in range(3))


def test_a_call_that_was_cut_short_is_forgotten(streamed: Streamed) -> None:
    streamed.stream.enter(1)  # and a Ctrl-C: nobody leaves
    streamed.stream.enter(2)
    assert streamed.is_at_rest(1)
    streamed.stream.rest()
    assert all(streamed.is_at_rest(number) for number in range(3))
    streamed.stream.leave(2)


def test_a_thread_that_died_inside_a_unit_keeps_nobody_waiting(tmp_path: Path) -> None:
    streamed = Streamed(tmp_path / "root", 1)
    thread = threading.Thread(target=streamed.stream.enter, args=(0,))
    thread.start()
    thread.join()
    streamed.stream.enter(1)
    assert streamed.is_true(1)
    assert streamed.is_at_rest(0)
    streamed.stream.leave(1)
    streamed.close()


def test_a_unit_is_seen_from_outside_and_while_it_computes(streamed: Streamed) -> None:
    assert not streamed.stream.is_open(1)
    streamed.stream.open(1)
    streamed.stream.open(1)
    streamed.stream.shut(1)  # the other one still looks
    assert streamed.stream.is_open(1)
    assert streamed.is_true(1)
    streamed.stream.enter(1)
    streamed.stream.leave(1)
    assert streamed.is_true(1)
    streamed.stream.enter(1)
    streamed.stream.shut(1)
    assert streamed.is_true(1)
    streamed.stream.leave(1)
    assert streamed.is_at_rest(1)
    streamed.stream.open(2)
    streamed.stream.rest()
    assert streamed.is_at_rest(2)


@pytest.mark.parametrize("damage", ["flipped", "cut short"])
def test_what_cannot_be_read_is_told_and_the_next_pass_goes_through(streamed: Streamed, damage: str) -> None:
    file = next(path for path in streamed.origins.files if path.name == "layer-0001.weights")
    size = file.stat().st_size
    content = file.read_bytes()
    flip(file, 5000) if damage == "flipped" else os.truncate(file, 8192)
    streamed.stream.enter(0)
    streamed.stream.leave(0)
    for _ in range(2):
        with pytest.raises(StreamError, match="damaged" if damage == "flipped" else "cut short"):
            streamed.stream.enter(1)
        assert streamed.is_at_rest(1)
    with file.open("r+b") as stream:
        stream.write(content)
    assert file.stat().st_size == size
    time.sleep(0.1)  # what was read ahead meanwhile has failed by now
    for number in (1, 2):
        streamed.stream.enter(number)
        assert streamed.is_true(number)
        streamed.stream.leave(number)


def test_a_slow_disk_is_hidden_behind_the_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_s = compute_s = 0.1
    streamed = Streamed(tmp_path / "root", 2)
    pieces = len(streamed.stream._pieces[0])
    read = OpenFile.read

    def slow(*given: object) -> None:
        time.sleep(2 * read_s / pieces)  # two threads
        read(*given)

    monkeypatch.setattr(OpenFile, "read", slow)

    def one_pass() -> float:
        start = time.perf_counter()
        for number in range(3):
            streamed.stream.enter(number)
            time.sleep(compute_s)
            streamed.stream.leave(number)
        return time.perf_counter() - start

    one_pass()
    seconds = min(one_pass() for _ in range(3))
    hidden = 3 * (read_s + compute_s) - seconds
    assert hidden >= 0.8 * 3 * min(read_s, compute_s)
    streamed.close()
