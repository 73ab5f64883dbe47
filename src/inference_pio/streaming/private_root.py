"""The folder in which stores lie: this user's own, no link, and writable by nobody else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from inference_pio.errors import StorageError
from inference_pio.files import storage_errors


def private_root(folder: Path) -> Path:
    """The folder, made when missing. Raises StorageError for one whose content others could put there or change."""
    with storage_errors(folder):
        if not os.path.lexists(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        check_own(folder, forbidden=0o022)
    return folder


def check_own(folder: Path, forbidden: int = 0o077) -> None:
    """Raise StorageError unless this is a folder of this user's, and no link, that gives others no such rights."""
    found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode):
        raise StorageError(
            f"{folder} is a link, which could lead elsewhere tomorrow: give the folder that it leads to "
            f"({folder.resolve()})."
        )
    if not stat.S_ISDIR(found.st_mode):
        raise StorageError(f"{folder} is not a folder: choose another place for weights.")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise StorageError(f"{folder} belongs to another user, who could change weights in it: give one of your own.")
    if found.st_mode & forbidden:
        raise StorageError(
            f"{folder} can be used by others (mode {stat.S_IMODE(found.st_mode):o}), who could change weights in it: "
            f"chmod 700 {folder}, or give another folder."
        )
