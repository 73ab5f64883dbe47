from __future__ import annotations

import pytest

from inference_pio.sources.progress import byte_bar, phase_bar, say, share_bar
from inference_pio.sources.quiet import quiet_stderr


def test_lines_and_bars_go_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    say("a long line " * 20)
    with byte_bar("fetching", 2_000_000, shown=True) as show, quiet_stderr():
        show(1_000_000)
        show(3_000_000)
    with phase_bar("converting", phases=2, shown=True) as begin:
        begin("first")
        begin("second")
    with share_bar("rounding", shown=True) as tell:
        tell("calibration", 0.5)
        tell("held-out text", 1.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "rounding: held-out text" in err
    assert "a long line " * 19 in err
    assert "2.0/2.0 MB" in err
    assert "converting" in err


def test_nothing_is_shown_when_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    say("a line", shown=False)
    with byte_bar("fetching", 10, shown=False) as show:
        show(10)
    with phase_bar("converting", phases=1, shown=False) as begin:
        begin("first")
    with share_bar("rounding", shown=False) as tell:
        tell("calibration", 0.5)
    assert capsys.readouterr() == ("", "")
