"""Every test has a cache of its own and leaves two threads to torch."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import find, strategies

from tests.model_folder import write_model_folder

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs that way
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_PIO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the library's layout."""
    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def mute_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a tokenizer."""
    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny-mute", "qwen3", tokenizer=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests say why they do not run here."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_collection_finish() -> None:
    """What imports made stays for good, so that collecting garbage looks at what tests made alone: 20 ms, not 260."""
    find(strategies.just(0), lambda found: True)  # Hypothesis asks the collector about its own once, which is now
    gc.collect()
    gc.freeze()
