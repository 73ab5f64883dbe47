"""Kernels in Triton's interpreter, in a process of its own: it is asked for before Triton is first loaded."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from tests.kernels.triton.compiling import Compiler

Interpreted = Callable[..., Any]


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Interpreted]:
    """Call a function of a test module, by name, where kernels are interpreted; its errors are the test's."""
    if not has_triton():
        pytest.skip("triton is not installed (it is made for Linux alone)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
        broken = pool.submit(_broken).result()
    with pool:
        if broken:
            pytest.skip(broken)
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    return Compiler(monkeypatch, tmp_path)


def _broken() -> str | None:
    """Why the interpreter cannot run any loop here, or None: that of Triton 3.6 cannot with numpy 2.4."""
    from triton.runtime.errors import InterpreterError

    from tests.kernels.triton.loop import count_to_three

    assert os.environ["TRITON_INTERPRET"] == "1"
    try:
        return None if count_to_three() == 3 else "this interpreter cannot count"
    except InterpreterError as error:
        if "only 0-dimensional arrays" not in str(error):
            raise
        return f"the interpreter of this Triton cannot run loops with this numpy: {error}"
