"""Reading a family config from a file, in today's form or in a legacy one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.legacy import Migration, is_legacy, migrate
from inference_pio.configuration.legacy.told import warn_of_legacy
from inference_pio.configuration.reading import read_document, settings_from
from inference_pio.configuration.writing import write_document
from inference_pio.errors import InvalidSetting, StorageError, UnknownName

if TYPE_CHECKING:
    from inference_pio.contract.registry import OptimizationRegistry

Registries = Callable[[], "OptimizationRegistry"]


def read_family_config(
    path: Path, registries: Registries | None = None, stacklevel: int = 3
) -> ModelOptimizationConfig:
    """A family config; one in a legacy form is migrated for `registries()`, with one DeprecationWarning.

    Raises InvalidSetting naming the file and the wrong entry.
    """
    document = read_document(path)
    if not is_legacy(document):
        return settings_from(document, path, ModelOptimizationConfig)
    if registries is None:
        raise InvalidSetting(
            f"{path} is in a legacy form: `pio migrate {path} new.yaml` writes it in today's, "
            "and with inference_pio.integration imported it is read as it is."
        )
    migration = _migrated(document, path, registries())
    warn_of_legacy(str(path), migration.yaml, migration, stacklevel)
    return migration.config


def migrate_document(
    path: Path, out: Path | None, registry: OptimizationRegistry, overwrite: bool = False
) -> Migration:
    """Migrate a file, and write the new document to `out`; nothing is written where anything is wrong.

    Raises InvalidSetting naming the file and the wrong entry, StorageError.
    """
    document = read_document(path)
    if not is_legacy(document):
        settings_from(document, path, ModelOptimizationConfig)
        raise InvalidSetting(f"{path} is in today's form already: there is nothing to migrate.")
    migration = _migrated(document, path, registry)
    if out is not None:
        if out.exists() and not overwrite:
            raise StorageError(f"{out} is there already: choose another name, or let it be overwritten.")
        write_document(out, migration.document)
    return migration


def _migrated(document: dict[str, Any], path: Path, registry: OptimizationRegistry) -> Migration:
    try:
        return migrate(document, registry)
    except (InvalidSetting, UnknownName) as error:
        raise InvalidSetting(f"{path}: {error}") from error
