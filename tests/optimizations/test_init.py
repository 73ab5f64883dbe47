"""The registry is found by walking the package."""

from __future__ import annotations

from pathlib import Path

import inference_pio.optimizations
from inference_pio.optimizations import built_in


def test_every_file_of_the_package_is_an_optimization_of_its_name() -> None:
    folder = Path(inference_pio.optimizations.__file__).parent
    files = {path.stem for path in folder.rglob("*.py") if path.stem != "__init__"}
    assert files == set(built_in().names())


def test_each_says_what_it_is_in_one_line() -> None:
    for cls in built_in():
        assert cls.summary
        assert "\n" not in cls.summary
        assert cls.__doc__
