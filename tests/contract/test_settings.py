from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from inference_pio.contract.settings import Settings
from inference_pio.errors import InvalidSetting, UnknownName


class Inner(Settings):
    size: int = Field(4, ge=1)


class Window(Settings):
    size: int = Field(4, ge=1)
    kind: Literal["soft", "hard"] = "soft"
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _agree(self) -> Window:
        if self.kind == "hard" and self.size == 13:
            raise ValueError("a hard window of 13 contradicts itself")
        return self


def test_defaults_and_given_values_are_read() -> None:
    assert Window.read(None, "w") == Window()
    assert Window.read({"size": 8, "inner": {"size": 2}}, "w") == Window(size=8, inner=Inner(size=2))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Window().size = 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "8"}, r"wrong settings for attention: size: Input should be a valid integer \(given: '8'\)\."),
        ({"size": 1.0}, "size: Input should be a valid integer"),
        ({"size": True}, "size: Input should be a valid integer"),
        ({"size": None}, "size: Input should be a valid integer"),
        ({"size": 0}, "size: Input should be greater than or equal to 1"),
        ({"kind": "soggy"}, "kind: Input should be 'soft' or 'hard'"),
        ({"size": 0, "kind": 3}, "size: .*; kind: "),
        ({"size": 13, "kind": "hard"}, r"^wrong settings for attention: a hard window of 13 contradicts itself\.$"),
        ({"inner": {"size": 0}}, r"inner\.size: .*greater than|inner: .*size: .*greater than"),
        ({"inner": 5}, "inner: "),
    ],
)
def test_a_wrong_value_is_told_once_in_the_users_words(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message) as told:
        Window.read(values, "attention")
    assert "settings for Window" not in str(told.value)
    assert not str(told.value).endswith("..")


@pytest.mark.parametrize("values", ["abc", [("size", 4)], 5, {"size"}])
def test_what_is_no_mapping_is_refused(values: Any) -> None:
    with pytest.raises(InvalidSetting, match="the settings of attention must be a mapping"):
        Window.read(values, "attention")


@pytest.mark.parametrize("values", [{"sise": 4}, {"Size": 4}, {4: 4}, {"size": 4, "": 1}])
def test_an_unknown_key_is_told_with_the_known_ones(values: dict[Any, Any]) -> None:
    with pytest.raises(UnknownName, match=r"of attention.*Known: inner, kind, size"):
        Window.read(values, "attention")


def test_a_near_miss_is_offered() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'size'"):
        Window.read({"sise": 4}, "attention")


def test_building_settings_directly_raises_the_same_kinds() -> None:
    with pytest.raises(UnknownName, match="unknown setting 'sise' of Window"):
        Window(sise=4)
    with pytest.raises(InvalidSetting, match="wrong settings for Window: size"):
        Window(size="4")
