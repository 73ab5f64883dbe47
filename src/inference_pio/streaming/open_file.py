"""One open file that weights are read from: plain reads at offsets, past the page cache where the disk allows it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, TypeAlias

from inference_pio.errors import StreamError
from inference_pio.streaming.aligned import BLOCK, aligned_bytes, up_to

DIRECT = getattr(os, "O_DIRECT", 0)
Bytes: TypeAlias = Any
"""A flat array of uint8 of NumPy's: copying between two of them lets other threads run, which a memoryview does not."""


class OpenFile:
    """Never mapped: a file that is cut short while it is read is an error here, and no death by signal.

    `direct` tells whether reads go past the page cache; where a probe says that they cannot, what was read is dropped
    from the page cache afterwards. An open file stays readable when its name goes.
    """

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        self.path = path
        try:
            self._plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StreamError(
                f"cannot open {path}, which weights are read from ({error.strerror}): put the file back."
            ) from error
        self._direct = _probed(path) if direct and DIRECT else None

    @property
    def direct(self) -> bool:
        return self._direct is not None

    @property
    def stamp(self) -> tuple[int, ...]:
        """What changes whenever the file is written to."""
        found = os.fstat(self._plain)
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def read(self, offset: int, target: Bytes, slab: Bytes) -> None:
        """Fill `target` with what stands at `offset`; `slab` is aligned room for it and a block at either end.

        Raises StreamError where the file is shorter than that, or cannot be read.
        """
        try:
            got = self._read_direct(offset, target, slab) if self.direct else self._read_plain(offset, target)
        except OSError as error:
            raise StreamError(
                f"cannot read weights from {self.path} at {offset} ({error.strerror}). The pass was given up; "
                "try again, or take disk_offloading back."
            ) from error
        if got < len(target):
            raise StreamError(
                f"{self.path} is cut short: {got} of {len(target)} bytes of weights are left at {offset}. "
                "Put the file back as it was; what cannot be read cannot be taken back either."
            )

    def _read_direct(self, offset: int, target: Bytes, slab: Bytes) -> int:
        assert self._direct is not None
        start = offset // BLOCK * BLOCK
        lead, wanted = offset - start, up_to(offset - start + len(target), BLOCK)
        got = 0
        while got < lead + len(target):
            more = os.preadv(self._direct, [slab[got:wanted]], start + got)
            got += more
            if more <= 0 or got % BLOCK:  # a length that is no multiple of a block ends the file
                break
        found = max(0, min(got - lead, len(target)))
        target[:found] = slab[lead : lead + found]
        return found

    def _read_plain(self, offset: int, target: Bytes) -> int:
        got = 0
        while got < len(target) and (more := os.preadv(self._plain, [target[got:]], offset + got)):
            got += more
        with contextlib.suppress(OSError, AttributeError):  # advice, which a system may not know
            os.posix_fadvise(self._plain, offset, len(target), os.POSIX_FADV_DONTNEED)
        return got

    def close(self) -> None:
        for descriptor in (self._plain, self._direct):
            if descriptor is not None:
                os.close(descriptor)


def slab_for(nbytes: int) -> Bytes:
    """Aligned room to read so many bytes through, wherever they begin."""
    return aligned_bytes(up_to(nbytes, BLOCK) + BLOCK).numpy()


def _probed(path: Path) -> int | None:
    """The file opened for reads past the page cache, if one such read works."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | DIRECT)
    except OSError:
        return None
    try:
        os.preadv(descriptor, [aligned_bytes(BLOCK).numpy().data], 0)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
