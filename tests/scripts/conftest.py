"""A tokenizer and tokens small enough for tests, of the same making as the reference models' own."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.reference.corpus import documents, stream
from scripts.reference.tokenizer import train_tokenizer
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [text for _, text in documents(held_out=True)]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts)


@pytest.fixture(scope="session")
def tokens(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    return stream(texts[:6], tokenizer)
