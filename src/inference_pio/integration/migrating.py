"""Legacy configurations and calls, in terms of what is registered now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_pio.configuration import ModelFamily
from inference_pio.configuration.legacy import Migration
from inference_pio.configuration.legacy import migrate as migrate_for
from inference_pio.configuration.legacy.words import FLAGS
from inference_pio.configuration.legacy_file import migrate_document
from inference_pio.configuration.writing import check_path
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.manager import get_optimization_manager


def migrate(legacy: object, registry: OptimizationRegistry | None = None) -> Migration:
    """A legacy document, mapping of flags or object with flags, as a family config; nothing is touched.

    A word whose optimization is not registered (in the shared registry, if none is given) is listed in `unmatched`.
    Raises UnknownName for words that were never known, InvalidSetting for wrong or contradicting values.

    >>> print(migrate({"use_flash_attention_2": True}).yaml, end="")
    family: other
    optimizations:
    - flash_attention
    """
    return migrate_for(legacy, get_optimization_manager().registry if registry is None else registry)


def migrate_file(path: str | Path, out: str | Path | None = None, *, overwrite: bool = False) -> Migration:
    """Migrate a YAML or JSON file; the new document goes to `out` (its ending picks the form), if one is given.

    Raises InvalidSetting naming the file and the wrong entry, StorageError where `out` is there already (unless
    `overwrite`) or cannot be written; then nothing is written.
    """
    target = None if out is None else check_path(out)
    return migrate_document(check_path(path), target, get_optimization_manager().registry, overwrite)


def migrate_call(family: ModelFamily | None, given: object, flags: Mapping[str, Any]) -> Migration:
    """What a legacy call asks for: flags as keyword arguments, in place of a profile or a config."""
    for name in flags:
        if name not in FLAGS:
            raise UnknownName("argument", name, [*FLAGS, "profile_name"])
    if given is not None:
        raise InvalidSetting(f"{', '.join(flags)} cannot stand beside {given!r}: give the one or the others.")
    return migrate_for(dict(flags), get_optimization_manager().registry, family)
