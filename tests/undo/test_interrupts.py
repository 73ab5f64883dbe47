from __future__ import annotations

import signal
import threading

import pytest

from inference_pio.undo.interrupts import held_back


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done = []

    def block() -> None:
        with held_back():
            press()
            press()
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done


def test_the_outermost_block_decides() -> None:
    done = []

    def block() -> None:
        with held_back():
            with held_back():
                press()
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["inner", "outer"]


def test_the_handler_is_the_users_again_also_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), held_back():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_users_own_is_called_once_at_the_end() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with held_back():
            press()
            press()
            assert seen == []
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back():
            press()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_has_nothing_to_hold() -> None:
    done = []

    def work() -> None:
        with held_back():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
