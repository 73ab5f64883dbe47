"""Writing settings to a file that reads back to the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from inference_pio.configuration.plain_data import Document
from inference_pio.configuration.reading import FLOAT, is_json
from inference_pio.errors import InvalidSetting
from inference_pio.files import write_atomically


def document_of(settings: Document) -> dict[str, Any]:
    """What was set, as plain data: what was left to its default stays so when it is read back."""
    return settings.model_dump(mode="json", exclude_unset=True)


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write plain data whole or not at all, as JSON or YAML by the file's ending.

    Raises InvalidSetting for another ending, StorageError where the place cannot be written.
    """
    write_atomically(path, as_json(document) if is_json(path) else as_yaml(document))


def as_json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_yaml(document: dict[str, Any]) -> str:
    return str(yaml.dump(document, Dumper=_InFull, sort_keys=False, allow_unicode=True, width=100))


class _InFull(yaml.SafeDumper):
    """Writes out what stands at two places, where YAML would point from one to the other."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_InFull.add_implicit_resolver(*FLOAT)  # type: ignore[no-untyped-call] # a word that looks like one is quoted


def check_path(path: str | Path) -> Path:
    """A path as `Path`. Raises InvalidSetting for what is none."""
    if not isinstance(path, str | Path):
        raise InvalidSetting(f"a path must be a str or a Path, not {path!r}.")
    return Path(path)
