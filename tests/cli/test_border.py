from __future__ import annotations

import logging
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from inference_pio.cli.border import Command, with_bare_json
from inference_pio.errors import DiskFull, UnknownName


def ending_with(error: BaseException) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command(cls=Command)
    def work(
        json: Annotated[str | None, typer.Option("--json")] = None,
        debug: Annotated[bool, typer.Option("--debug")] = False,
    ) -> None:
        raise error

    return app


def test_a_typed_error_is_one_line_and_exit_code_1() -> None:
    answer = CliRunner().invoke(ending_with(UnknownName("profile", "fast", ["balanced [x]"])), [])
    assert answer.exit_code == 1
    assert answer.stderr == "error: unknown profile 'fast'. Known: balanced [x].\n"
    assert answer.stdout == ""


def test_an_error_of_several_lines_is_told_in_one() -> None:
    answer = CliRunner().invoke(ending_with(DiskFull("no room:\n  10 MB are free\n")), [])
    assert answer.stderr == "error: no room: 10 MB are free\n"


def test_ctrl_c_is_exit_code_130() -> None:
    answer = CliRunner().invoke(ending_with(KeyboardInterrupt()), [])
    assert answer.exit_code == 130
    assert answer.stderr == "error: interrupted; nothing partial was kept\n"


def test_too_little_memory_is_told_in_one_line() -> None:
    answer = CliRunner().invoke(ending_with(MemoryError()), [])
    assert answer.exit_code == 1
    assert answer.stderr == "error: out of memory (MemoryError): take a smaller model or --dtype.\n"


def test_a_mistake_of_ours_is_told_as_one_with_its_own_code_and_the_way_to_more() -> None:
    answer = CliRunner().invoke(ending_with(ZeroDivisionError("x.\nmore")), [])
    assert answer.exit_code == 70
    assert answer.stderr == (
        "error: this should not happen, and is a mistake of inference-pio (ZeroDivisionError: x). "
        "Run the same with --debug and report what it prints.\n"
    )


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), UnknownName("profile", "fast", ["balanced"])])
def test_debug_shows_the_traceback_before_the_error(error: Exception) -> None:
    answer = CliRunner().invoke(ending_with(error), ["--debug"])
    assert answer.stderr.startswith("Traceback (most recent call last):")
    assert answer.stderr.splitlines()[-1].startswith("error: ")
    assert "Run the same with --debug" not in answer.stderr


def test_wrong_usage_found_late_and_exits_keep_their_codes() -> None:
    assert CliRunner().invoke(ending_with(typer.BadParameter("no")), []).exit_code == 2
    assert CliRunner().invoke(ending_with(typer.Exit(3)), []).exit_code == 3


def test_the_librarys_log_is_told_from_warnings_on_and_with_debug_all_of_it() -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command(cls=Command)
    def work(debug: Annotated[bool, typer.Option("--debug")] = False) -> None:
        logging.getLogger("inference_pio.manager").info("a detail")
        logging.getLogger("inference_pio.manager").warning("a warning")

    assert CliRunner().invoke(app, []).stderr == "WARNING inference_pio.manager: a warning\n"
    assert "INFO inference_pio.manager: a detail" in CliRunner().invoke(app, ["--debug"]).stderr
    log = logging.getLogger("inference_pio")
    assert (log.level, log.handlers, log.propagate) == (logging.NOTSET, [], True)


def test_wrong_usage_is_exit_code_2() -> None:
    answer = CliRunner().invoke(ending_with(ZeroDivisionError()), ["--jsn"])
    assert answer.exit_code == 2
    assert "--jsn" in answer.stderr


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], []),
        (["--json"], ["--json", "-"]),
        (["--json", "-"], ["--json", "-"]),
        (["--json", "--profile", "x"], ["--json", "-", "--profile", "x"]),
        (["--json", "profiles"], ["--json", "-", "profiles"]),
        (["--json", "out.json", "demo"], ["--json", "out.json", "demo"]),
        (["--json", "/tmp/out"], ["--json", "/tmp/out"]),
        (["--json=out"], ["--json=out"]),
    ],
)
def test_a_bare_json_means_standard_output(given: list[str], meant: list[str]) -> None:
    assert with_bare_json(given) == meant
