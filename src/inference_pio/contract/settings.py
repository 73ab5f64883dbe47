"""Settings stated once as a frozen model; wrong ones are told in the user's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from inference_pio.errors import InferencePioError, InvalidSetting, UnknownName


class Settings(BaseModel):
    """A frozen set of settings; unknown keys and wrong types raise typed errors that name the known ones.

    >>> class Window(Settings):
    ...     size: int = 4
    >>> Window.read({"size": 8}, "the window")
    Window(size=8)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def read(cls, values: Mapping[str, Any] | None, whose: str) -> Self:
        """Check raw values. Raises UnknownName for a key that is not known, InvalidSetting for a wrong value."""
        if values is not None and not isinstance(values, Mapping):
            raise InvalidSetting(f"the settings of {whose} must be a mapping of names to values, not {values!r}.")
        given = dict(values or {})
        for key in given:
            if key not in cls.model_fields:
                raise UnknownName("parameter", key, cls.model_fields, where=f"of {whose}")
        settings = cls.__new__(cls)
        try:
            BaseModel.__init__(settings, **given)
        except ValidationError as error:
            raise InvalidSetting(_told(error, whose)) from None
        return settings

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _typed(error, type(self)) from None


def _typed(error: ValidationError, owner: type[Settings]) -> InferencePioError:
    for problem in error.errors():
        if problem["type"] == "extra_forbidden":
            return UnknownName("setting", problem["loc"][-1], owner.model_fields, where=f"of {owner.__name__}")
    return InvalidSetting(_told(error, owner.__name__))


def _told(error: ValidationError, whose: str) -> str:
    lines = []
    for problem in error.errors():
        place = f"{'.'.join(map(str, problem['loc']))}: " if problem["loc"] else ""
        inner = problem.get("ctx", {}).get("error")
        whole = problem["type"] == "missing" or not problem["loc"] or isinstance(inner, InferencePioError)
        given = "" if whole else f" (given: {problem['input']!r})"
        lines.append(f"{place}{problem['msg'].removeprefix('Value error, ').rstrip('.')}{given}")
    return f"wrong settings for {whose}: {'; '.join(lines)}."
