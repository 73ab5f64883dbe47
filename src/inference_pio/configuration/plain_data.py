"""Plain data only: what a file can hold, and no more of it than a configuration needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from inference_pio.contract.settings import Settings

MAX_DEPTH = 32
MAX_PARTS = 10_000
_BIGGEST = 2**63  # beyond this, readers of JSON in other languages disagree


class Document(Settings):
    """Settings that live in files, so everything in them is words, numbers, true, false, null, lists and mappings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _only_plain_data(cls, given: Any) -> Any:
        check_plain(given)
        return given


def check_plain(data: Any) -> None:
    """Raise ValueError, naming the place, for what a file cannot hold.

    >>> check_plain({"sizes": [1, 2, float("nan")]})
    Traceback (most recent call last):
    ValueError: sizes.2: nan has no place in a file: give a finite number
    """
    pending: list[tuple[tuple[Any, ...], Any]] = [((), data)]
    count = 0
    while pending:
        place, part = pending.pop()
        count += 1
        problem = _problem(part, len(place), count)
        if problem:
            raise ValueError(f"{'.'.join(map(str, place)) or 'the document'}: {problem}")
        pending.extend(((*place, key), inner) for key, inner in _inside(part))


def _inside(part: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(part, BaseModel):
        yield from ((name, value) for name, value in part)
    elif isinstance(part, Mapping):
        yield from part.items()
    elif isinstance(part, list | tuple):
        yield from enumerate(part)


def _problem(part: Any, depth: int, count: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"it is nested more than {MAX_DEPTH} deep"
    if count > MAX_PARTS:
        return f"the document holds more than {MAX_PARTS} parts"
    if isinstance(part, Mapping):
        odd = [key for key in part if not (isinstance(key, str) and _is_text(key))]
        return f"keys must be words, and {odd[0]!r} is none" if odd else None
    if isinstance(part, str):
        return None if _is_text(part) else "it holds half a character (a lone surrogate)"
    if isinstance(part, float) and not math.isfinite(part):
        return f"{part} has no place in a file: give a finite number"
    if isinstance(part, int) and not -_BIGGEST < part < _BIGGEST:
        return "a whole number must fit into 64 bits"
    if part is None or isinstance(part, bool | int | float | Enum | list | tuple | BaseModel):
        return None
    return f"only words, numbers, true, false, null, lists and mappings can stand here, not {type(part).__name__}"


def _is_text(word: str) -> bool:
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
