from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_folder import write_model_folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def mute_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a tokenizer."""
    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny-mute", "qwen3", tokenizer=False)
