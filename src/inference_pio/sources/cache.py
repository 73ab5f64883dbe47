"""The user's cache folder, where fetched and converted models stay."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from inference_pio.errors import StorageError
from inference_pio.files import storage_errors
from inference_pio.partials import sweep_partials

VARIABLE = "INFERENCE_PIO_CACHE"


def cache_folder() -> Path:
    """`INFERENCE_PIO_CACHE`, else the system's usual place (`XDG_CACHE_HOME` or `~/.cache` on Linux); not created."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else _usual_place() / "inference-pio"


def cache_room(name: str) -> Path:
    """A folder of the cache, made when missing, swept of what dead processes left.

    Raises `StorageError` naming the variable that moves the cache.
    """
    room = cache_folder() / name
    try:
        with storage_errors(room):
            room.mkdir(parents=True, exist_ok=True)
            if not os.access(room, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
    except StorageError as error:
        cause = getattr(error.__cause__, "strerror", None) or error
        raise StorageError(
            f"cannot write the cache folder {room} ({cause}): set {VARIABLE} to a folder that you may write to."
        ) from error
    sweep_partials(room)
    return room


def _usual_place() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".cache"  # the standard ignores a relative one
