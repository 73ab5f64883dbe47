"""Settings are checked once, and wrong ones are told in the user's words."""

from __future__ import annotations

from typing import Literal

import pytest

from inference_pio.contract.settings import Settings
from inference_pio.errors import InvalidSetting, UnknownName


class Window(Settings):
    size: int = 4
    kind: Literal["sliding", "fixed"] = "sliding"


def test_defaults_and_given_values_are_read() -> None:
    assert Window.read(None, "the window") == Window.read({}, "the window") == Window(size=4)
    assert Window.read({"size": 8}, "the window").size == 8


def test_an_unknown_key_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"unknown parameter 'sise' of the window\. Did you mean 'size'"):
        Window.read({"sise": 8}, "the window")
    with pytest.raises(UnknownName, match="'size'"):
        Window(sise=8)


@pytest.mark.parametrize("values", [{"size": "8"}, {"size": 8.5}, {"size": None}, {"size": True}, {"kind": "round"}])
def test_a_wrong_value_is_not_bent_into_a_right_one(values: dict[str, object]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(values))):
        Window.read(values, "the window")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Window().size = 3
