"""Every test has a cache of its own and leaves two threads to torch."""

from __future__ import annotations

import gc
import itertools
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# torch and transformers are imported where they are used: the process that hands tests out needs neither, and begins
# three seconds sooner without.

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs that way
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, which is there once it is written to: most never are, and a folder takes 3 ms."""
    path = next(_caches)
    monkeypatch.setenv("INFERENCE_PIO_CACHE", str(path))
    yield path
    if path.exists():
        shutil.rmtree(path)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the library's layout."""
    from tests.model_folder import write_model_folder

    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def mute_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a tokenizer."""
    from tests.model_folder import write_model_folder

    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny-mute", "qwen3", tokenizer=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests say why they do not run here."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_collection_finish() -> None:
    from hypothesis import find, strategies

    find(strategies.just(0), lambda found: True)  # Hypothesis asks the collector about its own once, which is now
    gc.callbacks.append(_watch)
    _freeze()


@pytest.fixture(autouse=True)
def _little_to_collect() -> None:
    """In a test that stood behind thousands, collecting took 900 ms: imports and compilers' tables come with tests."""
    if _SLOWEST_MS[0] > 50:
        _freeze()


_BEGAN, _SLOWEST_MS = [0.0], [0.0]


def _watch(phase: str, info: dict[str, int]) -> None:
    if phase == "start":
        _BEGAN[0] = time.process_time()
    else:
        _SLOWEST_MS[0] = max(_SLOWEST_MS[0], 1e3 * (time.process_time() - _BEGAN[0]))


def _freeze() -> None:
    """What is there stays for good, so that collecting garbage looks at what tests made alone: 20 ms, not 260."""
    gc.collect()
    gc.freeze()
    _SLOWEST_MS[0] = 0.0
