from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.sources import cache, demo


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has its own cache folder, which does not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    monkeypatch.delenv(demo.VARIABLE, raising=False)
    return folder
