from __future__ import annotations

import pytest

from inference_pio.cli.bars import Bars, working


def test_a_bar_a_stage_named_after_it_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars("plain float32")("speed", 0.5)
        bars("optimized")("quality", 1.0)
    out, err = capsys.readouterr()
    assert "plain float32: speed" in err
    assert "optimized: quality" in err
    assert out == ""


def test_a_bar_is_full_when_its_stage_ends_and_not_before() -> None:
    with Bars() as bars:
        told = bars("one")
        told("speed", 1.0)
        (task,) = bars._progress.tasks
        assert not task.finished
        told("quality", 0.25)
        assert task.completed == 0.25
        bars("two")
        assert task.finished


def test_a_stage_that_fails_is_not_shown_as_done() -> None:
    bars = Bars()
    with pytest.raises(ZeroDivisionError):
        fail_within(bars)
    assert not bars._progress.tasks[0].finished


def test_quiet_bars_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(quiet=True) as bars:
        bars("one")("speed", 0.5)
    assert capsys.readouterr() == ("", "")


def test_where_nobody_looks_a_wait_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with working("reading [a/b]"):
        pass
    assert capsys.readouterr() == ("", "")


def test_where_somebody_looks_a_wait_is_shown_with_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with working("reading [a/b]"):
        pass
    assert "reading [a/b]" in capsys.readouterr().err
    with working("reading", quiet=True):
        pass
    assert capsys.readouterr() == ("", "")


def fail_within(bars: Bars) -> None:
    with bars:
        bars("one")("speed", 0.5)
        raise ZeroDivisionError
