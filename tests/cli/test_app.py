from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import inference_pio
from inference_pio.cli import app

COMMANDS = ["list", "plan", "optimize", "generate", "export", "compare", "doctor", "migrate"]
PIO = "import sys; from inference_pio.cli import main; main()"
HEEDS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
"""A run of the tests in the background is started with the signal ignored, and children inherit that."""


def pio(*words: str, **how: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run([sys.executable, "-c", PIO, *words], capture_output=True, text=True, check=False, **how)


def test_the_commands_are_these() -> None:
    assert [command.name for command in app.registered_commands] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    answer = CliRunner().invoke(app, [command, "--help"])
    assert answer.exit_code == 0
    assert "--json" in answer.stdout


def test_the_version_is_told() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout) == (0, f"inference-pio {inference_pio.__version__}\n")


def test_an_unknown_command_is_wrong_usage() -> None:
    answer = CliRunner().invoke(app, ["optimise"])
    assert answer.exit_code == 2
    assert "optimise" in answer.stderr


def test_help_loads_no_torch() -> None:
    code = "import sys, inference_pio.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_real_process_plans_and_ends_well(llama_folder: Path) -> None:
    answer = pio("plan", str(llama_folder), "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["model"] == "tiny-llama"
    assert "plan for tiny-llama" in answer.stderr


def test_a_real_process_ends_an_error_with_one_line_and_code_1(tmp_path: Path) -> None:
    answer = pio("plan", str(tmp_path / "nowhere"))
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: there is no folder or file")
    assert answer.stderr.count("\n") == 1


def test_a_terminal_without_a_sign_for_a_character_shows_its_number(tmp_path: Path) -> None:
    old = tmp_path / "é.yaml"
    old.write_text("use_flash_attention_2: true\n")
    answer = pio("migrate", str(old), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.endswith("\\xe9.new.yaml\n")


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal, which Windows has not")
def test_a_real_ctrl_c_ends_with_code_130_and_leaves_no_file(llama_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    words = ["optimize", str(llama_folder), "--json", str(place / "report.json"), "--save", str(place / "saved")]
    with subprocess.Popen(
        [sys.executable, "-c", HEEDS_CTRL_C + PIO, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("plan for tiny-llama")
        time.sleep(0.3)  # into the first measurement
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in told
    assert "Traceback" not in told
    assert not place.exists()
