"""The JSON schemas of the files, made from the settings; editors and other programs read the shipped copies.

`python -c "from inference_pio.configuration.schema import write_schemas; write_schemas()"` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.plain_data import Document
from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.configuration.reading import DATA
from inference_pio.configuration.writing import as_json
from inference_pio.files import write_atomically

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMAS: dict[str, type[Document]] = {
    "family.schema.json": ModelOptimizationConfig,
    "profile.schema.json": GlobalOptimizationProfile,
}


def schema_of(kind: type[Document]) -> dict[str, Any]:
    """The JSON schema of one kind of document.

    >>> schema_of(GlobalOptimizationProfile)["required"]
    ['name', 'default_settings']
    """
    found = kind.model_json_schema(mode="validation")
    for part in (found, *found.get("$defs", {}).values()):
        if "description" in part:
            part["description"] = _first_paragraph(part["description"])
    return {"$schema": DIALECT, **found}


def shipped_schema(name: str) -> dict[str, Any]:
    """A schema as the package holds it, by the name of its file."""
    found: dict[str, Any] = json.loads((DATA / name).read_text(encoding="utf-8"))
    return found


def write_schemas(folder: Path = DATA) -> None:
    """Write both schemas, each file whole or not at all."""
    for name, kind in SCHEMAS.items():
        write_atomically(folder / name, as_json(schema_of(kind)))


def _first_paragraph(text: str) -> str:
    """Of a docstring what a reader of a schema needs."""
    return " ".join(text.split("\n\n")[0].split())
