"""Kernels in Triton's interpreter, in a process of its own: it is asked for before Triton is first loaded."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from tests.kernels.triton.compiling import Compiler
from tests.sweep import turn_of_this_commit

Interpreted = Callable[..., Any]
ONE_OF = {"compiler": 4, "interpreted": 2}
"""`make test` compiles one of so many cases of a test for each GPU, and interprets one of so many where there are more
than a few; each commit the next ones, and `make verify` all of them."""
A_FEW = {"compiler": 1, "interpreted": 6}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiling a kernel takes a second, interpreting one nearly as long, and a test asks it of a dozen shapes: those
    whose turn it is not are slow."""
    cases = defaultdict[Any, list[pytest.Function]](list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "slow" not in item.keywords:
            for way in ONE_OF.keys() & set(item.fixturenames):
                gpu = item.callspec.params.get("capability")
                cases[way, item.function, gpu].append(item)
    for (way, *_), alike in cases.items():
        turn = turn_of_this_commit() % min(len(alike), ONE_OF[way])
        for place, item in enumerate(alike):
            if len(alike) > A_FEW[way] and place % ONE_OF[way] != turn:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Interpreted]:
    """Call a function of a test module, by name, where kernels are interpreted; its errors are the test's."""
    if not has_triton():
        pytest.skip("triton is not installed (it is made for Linux alone)")
    pool, broken = _interpreter()
    if broken:
        pytest.skip(broken)
    yield lambda function, *arguments: pool.submit(function, *arguments).result()
    pool.shutdown()


@functools.cache
def _interpreter() -> tuple[ProcessPoolExecutor, str | None]:
    """One process for all folders that import the fixture above: each takes seven seconds to begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)
        return pool, pool.submit(_broken).result()


@pytest.fixture
def gpu_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support

    monkeypatch.setattr(support, "has_triton", lambda: True)
    monkeypatch.setattr(support, "_device", lambda device: None)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    return Compiler(monkeypatch, tmp_path)


def _begin() -> None:
    """One thread, and a language that is patched once a launch: the interpreter patches it anew whenever a kernel calls
    a helper, which is a quarter of all its time."""
    torch.set_num_threads(1)
    from triton import language
    from triton.runtime import interpreter

    patch, standing = interpreter._patch_lang, set[frozenset[str]]()

    def once(function: Any) -> SimpleNamespace | None:
        seen = {id(value) for value in function.__globals__.values()}
        modules = frozenset(each.__name__ for each in (language, language.core) if id(each) in seen)
        if modules in standing:  # what a helper is given is not looked at
            return None
        standing.add(modules)
        scope = patch(function)
        return SimpleNamespace(restore=lambda: (standing.clear(), scope.restore()))

    interpreter._patch_lang = once


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
