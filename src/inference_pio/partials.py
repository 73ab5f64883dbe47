"""Names for unfinished work (`.<name>.<machine>.<process>.<random>.partial`), and sweeping what dead processes left."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import time
from pathlib import Path

import psutil

_PARTIAL = re.compile(r"\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]+\.partial$")
_FOREIGN_AGE_S = 7 * 24 * 3600  # another machine's process cannot be asked whether it lives


def partial_beside(path: str | os.PathLike[str]) -> Path:
    """A fresh name in the same folder that tells whose unfinished work it is."""
    path = Path(path)
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def sweep_partials(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete what processes that no longer live left in `folder`; returns what was deleted."""
    swept = [path for path in Path(folder).glob("*.partial") if _is_abandoned(path)]
    for path in swept:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return swept


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "unknown"


def _is_abandoned(path: Path) -> bool:
    owner = _PARTIAL.search(path.name)
    if owner is None:
        return False
    if owner["host"] == _host():
        return not psutil.pid_exists(int(owner["pid"]))
    try:
        return time.time() - path.stat().st_mtime > _FOREIGN_AGE_S
    except OSError:  # its owner has just finished
        return False
