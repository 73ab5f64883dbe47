from __future__ import annotations

import os
import subprocess
import sys

import pytest

from inference_pio.cli import completion
from inference_pio.configuration import get_config_manager
from inference_pio.manager import ModularOptimizationManager


def test_it_offers_every_optimization_of_the_registry_and_no_other() -> None:
    assert completion.optimizations("") == ModularOptimizationManager().registry.names()
    assert completion.assignments("tensor") == ["tensor_compression.", "tensor_decomposition."]


def test_it_offers_every_profile() -> None:
    assert completion.profiles("") == get_config_manager().list_profiles()
    assert completion.profiles("lo") == ["lossless"]


def test_behind_a_comma_the_next_profile_is_offered_and_none_twice() -> None:
    assert completion.profile_lists("lossless,b") == ["lossless,balanced"]
    assert "lossless,lossless" not in completion.profile_lists("lossless,")
    assert completion.profile_lists("lo") == ["lossless"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pio plan demo --profile lo", "lossless"),
        ("pio plan demo --enable flash", "flash_attention"),
        ("pio compare demo --profiles balanced,lo", "balanced,lossless"),
        ("pio co", "compare"),
    ],
)
def test_a_real_shell_is_answered(typed: str, offered: str) -> None:
    words = {"_PIO_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    code = "import sys; from inference_pio.cli import app; app(prog_name='pio'); sys.exit(int('torch' in sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert answer.stdout.split() == [offered], answer.stderr


def test_completing_loads_no_torch() -> None:
    code = (
        "import sys; from inference_pio.cli import completion as c; "
        "c.optimizations(''), c.profiles(''); sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
