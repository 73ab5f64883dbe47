"""What a converted folder holds and came from, so that damage to it is seen before a model is read from it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from inference_pio.files import sha256_of, write_atomically

FILE_NAME = "inference-pio.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """`files` maps a name to its `bytes`, `mtime_ns` and `sha256`; `notes` are for the report."""

    source_name: str
    source_sha256: str
    tensor_types: dict[str, int]
    notes: tuple[str, ...]
    files: dict[str, dict[str, int | str]]
    format: int = FORMAT


def write_manifest(
    folder: Path, *, source_name: str, source_sha256: str, tensor_types: dict[str, int], notes: tuple[str, ...]
) -> Manifest:
    """Hash every file of `folder` and write the manifest into it, last."""
    names = sorted(path.name for path in folder.iterdir() if path.name != FILE_NAME)
    files = {name: _record(folder / name) for name in names}
    manifest = Manifest(source_name, source_sha256, tensor_types, notes, files)
    write_atomically(folder / FILE_NAME, json.dumps(dataclasses.asdict(manifest), indent=1))
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a converted folder, or None where there is none that can be read."""
    try:
        told = json.loads((folder / FILE_NAME).read_bytes())
        manifest = Manifest(**{**told, "notes": tuple(told["notes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest if manifest.format == FORMAT else None


def damage(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with a folder's files, in words, or None.

    A file of the recorded size and time is trusted; one touched since is hashed (540 MB take a second or two).
    """
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        now = path.stat()
        if now.st_size != record["bytes"]:
            return f"{name} has {now.st_size:,} bytes, not {record['bytes']:,}"
        if now.st_mtime_ns != record["mtime_ns"] and sha256_of(path) != record["sha256"]:
            return f"{name} was changed"
    return None


def _record(path: Path) -> dict[str, int | str]:
    facts = path.stat()
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": sha256_of(path)}
