"""Reading a YAML or JSON file into checked settings; whatever is wrong is told with its file and place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from inference_pio.configuration.plain_data import check_plain
from inference_pio.contract.settings import Settings
from inference_pio.errors import InvalidSetting, UnknownName

DATA = Path(__file__).parent / "data"
MAX_BYTES = 1_000_000
S = TypeVar("S", bound=Settings)


class _PlainLoader(yaml.SafeLoader):
    """The safe loader without two traps: a key given twice (YAML drops the first in silence), and aliases.

    A few lines of aliases can stand for more data than a machine has memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not read: write it out", mark)
        return super().compose_node(parent, index)  # type: ignore[no-untyped-call, no-any-return]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
FLOAT = "tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789")
"""1e-3 is a number, as JSON and YAML 1.2 have it; by YAML 1.1 it would be a word."""
_PlainLoader.add_implicit_resolver(*FLOAT)  # type: ignore[no-untyped-call]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InvalidSetting naming the file, and the line where there is one."""
    return _read(path, "YAML", _from_yaml)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises InvalidSetting naming the file, and the line where there is one."""
    return _read(path, "JSON", _from_json)


def read_document(path: Path) -> dict[str, Any]:
    """The mapping in a file, which is JSON or YAML by its name's ending. Raises InvalidSetting naming the file."""
    return read_json(path) if is_json(path) else read_yaml(path)


def is_json(path: Path) -> bool:
    """Whether a file's name says JSON, not YAML. Raises InvalidSetting for any other ending."""
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise InvalidSetting(f"{path} must end in .yaml, .yml or .json: the ending says which form it has.")
    return path.suffix.lower() == ".json"


def read_settings(path: Path, kind: type[S]) -> S:
    """A file as settings of one kind. Raises InvalidSetting naming the file and the wrong entry."""
    return settings_from(read_document(path), path, kind)


def settings_from(document: dict[str, Any], path: Path, kind: type[S]) -> S:
    """What was read from a file, as settings of one kind; the same errors."""
    try:
        return kind.read(document, f"{kind.__name__} in {path.name}")
    except (InvalidSetting, UnknownName) as error:
        told = str(error)
        raise InvalidSetting(told if str(path) in told else f"{path}: {told}") from error


def _read(path: Path, form: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(_text(path))
        check_plain(found)
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise InvalidSetting(f"{path} is nested too deep.") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that is none is a ValueError of the loader
        raise InvalidSetting(f"{path}{_line(error)} is not the {form} that is expected: {_problem(error)}.") from error
    if not isinstance(found, dict):
        raise InvalidSetting(f"{path} must hold a mapping with words as keys, not {type(found).__name__}.")
    return found


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 1000} kB")
    return raw.decode("utf-8-sig")  # some editors put a mark before the text


def _from_yaml(text: str) -> Any:
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_one_of_each_key)


def _one_of_each_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def _line(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f", line {error.lineno}, column {error.colno},"
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}," if mark is not None else ""


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return str(getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0])
