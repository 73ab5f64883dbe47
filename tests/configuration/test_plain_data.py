from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydantic import Field

from inference_pio.configuration.plain_data import MAX_DEPTH, Document, check_plain
from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.errors import InvalidSetting


class Note(Document):
    title: str = ""
    parts: dict[str, Any] = Field(default_factory=dict)


def nested(depth: int) -> Any:
    return [] if depth == 0 else [nested(depth - 1)]


@pytest.mark.parametrize(
    "plain",
    [None, True, 3, -2.5, "word", [1, [2]], {"a": {"b": None}}, (1,), OptimizationType.MEMORY, nested(MAX_DEPTH)],
)
def test_what_a_file_can_hold_is_plain(plain: Any) -> None:
    check_plain(plain)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"a": float("inf")}, "a: inf has no place"),
        ({"a": [1, b"raw"]}, r"a\.1: only words.*not bytes"),
        ({"a": {1: 2}}, "a: keys must be words, and 1 is none"),
        ({None: 1}, "the document: keys must be words, and None is none"),
        ({"a": {3, 4}}, "a: only words.*not set"),
        ({"a": date(2024, 1, 1)}, "a: only words.*not date"),
        ({"a": 2**64}, "a: a whole number must fit into 64 bits"),
        ({"a": {"\ud800": 1}}, "a: keys must be words"),
        ({"a": "\ud800"}, "a: it holds half a character"),
        (nested(MAX_DEPTH + 1), "nested more than 32 deep"),
        ([0] * 10_001, "more than 10000 parts"),
        ([OptimizationConfig(name="x", parameters={"a": object()})], r"0\.parameters\.a: only words"),
    ],
)
def test_what_it_cannot_hold_is_told_with_its_place(odd: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_plain(odd)


def test_what_holds_itself_is_told_and_not_followed_for_ever() -> None:
    snake: list[Any] = []
    snake.append(snake)
    with pytest.raises(ValueError, match="nested more than"):
        check_plain(snake)


def test_a_document_takes_plain_data_only() -> None:
    assert Note(title="a", parts={"b": [1]}).parts == {"b": [1]}
    with pytest.raises(InvalidSetting, match=r"parts\.b: only words.*not object"):
        Note(parts={"b": object()})
