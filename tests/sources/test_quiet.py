from __future__ import annotations

import sys
import threading

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from inference_pio.sources.quiet import hub_bars, quiet_library, quiet_stderr


def state() -> tuple[int, bool, bool]:
    return logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()


def test_the_library_is_quiet_inside_and_as_before_outside() -> None:
    before = state()
    inside = []

    def fail() -> None:
        with quiet_library():
            inside.append(state())
            raise ValueError("passes through")

    with pytest.raises(ValueError, match="passes through"):
        fail()
    assert inside == [(logging.ERROR, False, True)]
    assert state() == before


def test_bars_that_the_user_switched_off_stay_off() -> None:
    before = state()
    logging.disable_progress_bar()
    try:
        with quiet_library(), hub_bars(shown=True):
            pass
        assert not logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    finally:
        logging.enable_progress_bar()
    assert state() == before


def test_a_second_thread_waits_as_the_switches_are_the_processs() -> None:
    order: list[str] = []

    def second() -> None:
        with quiet_library(), quiet_library():
            order.append("second")

    thread = threading.Thread(target=second)
    with quiet_library():
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_standard_error_is_dropped_only_inside(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_stderr():
        print("a bar", file=sys.stderr)
    print("a word", file=sys.stderr)
    assert capsys.readouterr().err == "a word\n"
