"""What the libraries loaded is left out of garbage collection here: each smoke round asks for one, of many."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def _frozen() -> Iterator[None]:
    import benchmarks.jobs  # noqa: F401 (loads what is to be left out)

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
