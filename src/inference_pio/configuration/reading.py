"""Reading a YAML file into checked settings; whatever is wrong is told with its file and place."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from inference_pio.contract.settings import Settings
from inference_pio.errors import InvalidSetting, UnknownName

DATA = Path(__file__).parent / "data"
S = TypeVar("S", bound=Settings)


class _OneOfEachKey(yaml.SafeLoader):
    """The safe loader, which also refuses a key given twice: plain YAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InvalidSetting naming the file, and the line where there is one."""
    try:
        loader = _OneOfEachKey(path.read_text(encoding="utf-8"))
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{path}{_line(error)} is not the YAML that is expected: {_problem(error)}.") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InvalidSetting(f"{path} must hold a mapping with words as keys, not {type(found).__name__}.")
    return found


def read_settings(path: Path, kind: type[S]) -> S:
    """A YAML file as settings of one kind. Raises InvalidSetting naming the file and the wrong entry."""
    try:
        return kind.read(read_yaml(path), f"{kind.__name__} in {path.name}")
    except (InvalidSetting, UnknownName) as error:
        told = str(error)
        raise InvalidSetting(told if str(path) in told else f"{path}: {told}") from error


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}," if mark is not None else ""


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or str(error).splitlines()[0])
