"""A package that offers an optimization is installed, found by its entry point, and swept by the contract tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference_pio import get_optimization_manager

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the package, and nothing of it in the repository."""
    room = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PLUGIN, source / "p")  # building writes beside the sources
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--target", str(room), str(source / "p")], check=True, timeout=120
    )
    return {**os.environ, "PYTHONPATH": str(room)}


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_manager_knows_it(installed: dict[str, str]) -> None:
    names = "from inference_pio import get_optimization_manager as m; print(m().get_available_optimizations())"
    assert "rounded_mantissa" in run(installed, "-c", names)
    assert "rounded_mantissa" not in get_optimization_manager().get_available_optimizations()


def test_it_is_swept_by_the_contract(installed: dict[str, str]) -> None:
    chosen = "rounded_mantissa and (llama or qwen3_moe) and not pairs and not failure or rounded_mantissa and no_effect"
    told = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", chosen)
    assert "passed" in told
    assert int(told.rsplit(" passed", 1)[0].split()[-1]) >= 12


def test_its_examples_run(installed: dict[str, str]) -> None:
    run(installed, "-m", "doctest", str(PLUGIN / "src" / "rounded_mantissa.py"))
