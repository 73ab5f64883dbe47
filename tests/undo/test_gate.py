from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from inference_pio.errors import ModelBusy
from inference_pio.undo.gate import Gate

SOON_S = 5.0


class Worker:
    """A thread that passes through the gate and stays inside until it is told to leave."""

    def __init__(self, gate: Gate, *, writes: bool = False, timeout_s: float = SOON_S) -> None:
        self.inside, self.leave, self.error = threading.Event(), threading.Event(), None
        self._enter: Callable[[], object] = (lambda: gate.writing(timeout_s)) if writes else gate.reading
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self._enter():  # type: ignore[attr-defined]
                self.inside.set()
                self.leave.wait(SOON_S)
        except ModelBusy as error:
            self.error = error

    def comes_in(self, within_s: float = SOON_S) -> bool:
        return self.inside.wait(within_s)

    def goes(self) -> None:
        self.leave.set()
        self.thread.join(SOON_S)
        assert not self.thread.is_alive()


@contextmanager
def worker(gate: Gate, **how: object) -> Iterator[Worker]:
    one = Worker(gate, **how)  # type: ignore[arg-type]
    try:
        yield one
    finally:
        one.goes()


def is_open(gate: Gate) -> bool:
    """Whether anybody can edit at once, and nothing of earlier visits is left."""
    with gate.writing(0):
        pass
    return not gate._visits


def test_readers_come_in_together_and_again_from_within() -> None:
    gate = Gate()
    with worker(gate) as other, gate.reading(), gate.reading():
        assert other.comes_in()
    assert is_open(gate)


def test_a_writer_waits_for_a_reader_in_another_thread() -> None:
    gate = Gate()
    with worker(gate) as reader:
        assert reader.comes_in()
        threading.Timer(0.1, reader.leave.set).start()
        with gate.writing(SOON_S):
            reader.thread.join(SOON_S)
            assert not reader.thread.is_alive()
    assert is_open(gate)


def test_a_writer_that_has_waited_long_enough_is_told_and_nothing_is_stuck() -> None:
    gate = Gate()
    with worker(gate) as reader:
        assert reader.comes_in()
        started = time.monotonic()
        with pytest.raises(ModelBusy, match=r"still computing in another thread after 0\.1 s"), gate.writing(0.1):
            pass
        assert 0.08 < time.monotonic() - started < SOON_S
        with worker(gate) as another:
            assert another.comes_in()
    assert is_open(gate)


def test_without_patience_a_busy_model_is_told_at_once() -> None:
    gate = Gate()
    with worker(gate) as reader:
        assert reader.comes_in()
        with pytest.raises(ModelBusy), gate.writing(0):
            pass
    with gate.writing(0):
        pass


def test_patience_may_have_no_end() -> None:
    gate = Gate()
    with worker(gate) as reader:
        assert reader.comes_in()
        threading.Timer(0.05, reader.leave.set).start()
        with gate.writing(float("inf")):
            pass
    assert is_open(gate)


def test_an_edit_from_inside_a_reader_raises_at_once_even_with_patience() -> None:
    gate = Gate()
    started = time.monotonic()
    with gate.reading(), pytest.raises(ModelBusy, match="inside the model's own forward"), gate.writing(60):
        pass
    assert time.monotonic() - started < 1
    assert is_open(gate)


def test_a_writer_may_write_again_and_read_its_own_model_and_write_within_that() -> None:
    gate = Gate()
    with gate.writing(0), gate.writing(0), gate.reading(), gate.writing(0):
        pass
    with worker(gate, writes=True) as writer:
        assert writer.comes_in()
        with worker(gate) as reader:
            assert not reader.comes_in(0.1)
            writer.leave.set()
    assert is_open(gate)


def test_a_reader_waits_while_another_thread_edits() -> None:
    gate = Gate()
    with worker(gate, writes=True) as writer:
        assert writer.comes_in()
        with worker(gate) as reader:
            assert not reader.comes_in(0.1)
            writer.leave.set()
            assert reader.comes_in()
    assert is_open(gate)


def test_two_writers_go_one_after_the_other() -> None:
    gate = Gate()
    with worker(gate, writes=True) as one, worker(gate, writes=True) as two:
        assert one.comes_in() or two.comes_in()
        time.sleep(0.05)
        first, second = (one, two) if one.inside.is_set() else (two, one)
        assert not second.inside.is_set()
        first.leave.set()
        assert second.comes_in()
    assert is_open(gate)


def test_two_readers_that_both_want_to_edit_are_both_told() -> None:
    gate = Gate()
    told: list[ModelBusy] = []
    both_in = threading.Barrier(2)

    def run() -> None:
        with gate.reading():
            both_in.wait(SOON_S)
            try:
                with gate.writing(SOON_S):
                    pass
            except ModelBusy as error:
                told.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert len(told) == 2
    assert is_open(gate)


def test_calls_that_overlap_without_end_do_not_keep_a_writer_out() -> None:
    gate = Gate()
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with gate.reading():
                time.sleep(0.02)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for number, thread in enumerate(threads):
        thread.start()
        time.sleep(0.007 * number)
    try:
        for _ in range(5):
            with gate.writing(SOON_S):
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join(SOON_S)
    assert is_open(gate)


def test_a_reader_inside_comes_in_again_though_a_writer_waits() -> None:
    gate = Gate()
    with gate.reading():
        writer = Worker(gate, writes=True)
        assert not writer.comes_in(0.05)
        with gate.reading():
            pass
    assert writer.comes_in()
    writer.goes()
    assert is_open(gate)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_exception_inside_opens_the_gate_again(error: BaseException) -> None:
    gate = Gate()
    with pytest.raises(type(error)), gate.reading(), gate.reading():
        raise error
    with pytest.raises(type(error)), gate.writing(0), gate.reading(), gate.writing(0):
        raise error
    assert is_open(gate)


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_a_ctrl_c_while_leaving_does_not_lock_the_model(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    notify, calls = gate._changed.notify_all, []

    def interrupted() -> None:
        calls.append(True)
        if len(calls) == 1:
            raise KeyboardInterrupt
        notify()

    monkeypatch.setattr(gate._changed, "notify_all", interrupted)

    def visit() -> None:
        with gate.reading() if way == "reading" else gate.writing(0):
            pass

    with pytest.raises(KeyboardInterrupt):
        visit()
    assert is_open(gate)


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_a_ctrl_c_while_waiting_leaves_nobody_in_the_queue(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    def interrupted(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with worker(gate, writes=True) as writer:
        assert writer.comes_in()
        with monkeypatch.context() as patch:
            patch.setattr(gate._changed, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt), gate.reading() if way == "reading" else gate.writing(SOON_S):
                pass
    assert is_open(gate)


def test_many_threads_never_meet_a_writer_inside() -> None:
    gate = Gate()
    state = {"readers": 0, "writers": 0}
    lock, wrong = threading.Lock(), []

    def note(kind: str, by: int) -> None:
        with lock:
            state[kind] += by
            if state["writers"] > 1 or (state["writers"] and state["readers"]):
                wrong.append(dict(state))

    def run(writes: bool) -> None:
        kind = "writers" if writes else "readers"
        for _ in range(30):
            with gate.writing(60) if writes else gate.reading():
                note(kind, 1)
                time.sleep(0)
                note(kind, -1)

    threads = [threading.Thread(target=run, args=(number % 3 == 0,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert is_open(gate)
