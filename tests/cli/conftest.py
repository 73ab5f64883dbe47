"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inference_pio.configuration import get_config_manager


@pytest.fixture(autouse=True)
def _forgotten_again() -> Iterator[None]:
    """What a test makes known is gone after it."""
    profiles = get_config_manager()._profiles
    before = dict(profiles)
    yield
    profiles.clear()
    profiles.update(before)
