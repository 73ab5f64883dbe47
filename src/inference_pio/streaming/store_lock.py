"""The lock of one store: shared by those who read it, exclusive for the one who writes or removes it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from inference_pio.errors import StorageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOOK_AGAIN_S = 0.05
SUFFIX = ".lock"


class StoreLock:
    """An open file that locks belong to; the system lets them go with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        if fcntl is None:
            raise StorageError("weights are put on disk under locks of POSIX systems, which this system has not.")
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def shared(self, patience_s: float) -> bool:
        """Wait to read; False where the lock was removed meanwhile, so that another one must be opened.

        Raises StorageError after `patience_s` seconds.
        """
        deadline = time.monotonic() + patience_s
        while not self._take(fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise StorageError(
                    f"another process has been writing {self.path.with_suffix('')} for {patience_s:g} s: "
                    "wait for it, or give another folder."
                )
            time.sleep(LOOK_AGAIN_S)
        return self._still_there()

    def exclusive(self) -> bool:
        """Whether nobody else reads or writes, so that this one may do anything, until `shared` or `close`."""
        return self._take(fcntl.LOCK_EX) and self._still_there()

    def close(self) -> None:
        os.close(self._file)

    def _take(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _still_there(self) -> bool:
        """Whether the name still leads to this very file: a lock of a removed one would exclude nobody."""
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._file))
