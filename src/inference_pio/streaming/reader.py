"""The reader: a few threads that bring pieces of files into memory, checked on the way; none waits for another."""

from __future__ import annotations

import os
import queue
import threading
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from inference_pio.errors import StreamError
from inference_pio.streaming.open_file import Bytes, OpenFile, slab_for
from inference_pio.streaming.pieces import Piece

Verify = Literal["first", "always", "size"]
LOOK_AGAIN_S = 1.0
CLOSED = "the reader of streamed weights is closed: the optimization was taken back."
FORKED = (
    "this process was forked from the one that streams the model's weights, and threads do not follow a fork. "
    "Load and optimize the model in this process, or start it by 'spawn'."
)


class Reading:
    """Pieces on their way to one target; `wait` returns when all are there, or raises what became of one."""

    def __init__(self, pieces: Sequence[Piece], target: Bytes) -> None:
        self.pieces, self.target = pieces, target
        self.error: Exception | None = None
        self._left = len(pieces)
        self._counting, self._done = threading.Lock(), threading.Event()
        if not pieces:
            self._done.set()

    @property
    def done(self) -> bool:
        """Whether nothing is written to the target any more."""
        return self._done.is_set()

    def landed(self, error: Exception | None = None) -> None:
        """One piece is there, or will not come."""
        with self._counting:
            self.error = self.error or error
            self._left -= 1
            if not self._left:
                self._done.set()

    def give_up(self) -> None:
        """Nobody wants it any more: pieces that no thread has begun are not read."""
        self.error = self.error or StreamError("given up: another layer was wanted.")
        self._done.wait()

    def wait(self) -> None:
        self._done.wait()
        if self.error is not None:
            raise self.error


class _Work:
    """What threads share. They hold nothing else, so that a reader nobody has any more is collected, and ends them."""

    def __init__(self, verify: Verify, direct: bool) -> None:
        self.verify: Verify = verify
        self.tasks: queue.SimpleQueue[tuple[Reading, Piece] | None] = queue.SimpleQueue()
        self.closed = False
        self._direct = direct
        self._files: dict[Path, OpenFile] = {}
        self._seen: dict[Piece, tuple[int, ...]] = {}
        self._opening = threading.Lock()

    def file(self, path: Path) -> OpenFile:
        with self._opening:
            if self.closed:
                raise StreamError(CLOSED)
            if path not in self._files:
                self._files[path] = OpenFile(path, direct=self._direct)
            return self._files[path]

    def bring(self, piece: Piece, target: Bytes, slab: Bytes, verify: Verify) -> None:
        """Read one piece to its place in a target, and check it."""
        file = self.file(piece.file)
        there = target[piece.at : piece.at + piece.nbytes]
        file.read(piece.offset, there, slab)
        if verify == "size":
            return
        stamp = file.stamp
        if verify == "first" and self._seen.get(piece) == stamp:  # checked, and nobody has written to the file since
            return
        if zlib.crc32(there) != piece.checksum:
            raise StreamError(
                f"weights in {piece.file} are damaged: {piece.nbytes} bytes at {piece.offset} have another checksum "
                "than when they were put away. The pass was given up; put the file back as it was, or load the model "
                "anew."
            )
        self._seen[piece] = stamp

    def close(self) -> None:
        with self._opening:
            self.closed = True
            while self._files:
                self._files.popitem()[1].close()

    @property
    def backend(self) -> str:
        files = list(self._files.values())
        how = "direct reads" if files and all(file.direct for file in files) else "plain reads"
        return f"{how}, dropped from the page cache" if how == "plain reads" else how


class Reader:
    """Reads pieces into targets by `threads` threads; at most one piece each is on its way.

    `verify`: checksums at the first read of a piece and after every change of its file, always, or never ("size": a
    file that is cut short is still told).
    """

    def __init__(self, threads: int, piece_bytes: int, *, verify: Verify = "first", direct: bool = True) -> None:
        self._work, self._process = _Work(verify, direct), os.getpid()
        self._slab_bytes, self._told = piece_bytes, (threads, piece_bytes, verify, direct)
        self._threads = [
            threading.Thread(
                target=_serve, args=(self._work, slab_for(piece_bytes)), name="inference-pio reader", daemon=True
            )
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(self, _close, self._work, self._threads, self._process)

    @property
    def backend(self) -> str:
        """How files are read, as far as any were opened."""
        return self._work.backend

    def another(self) -> Reader:
        """A reader of the same kind, with threads and files of its own."""
        threads, piece_bytes, verify, direct = self._told
        return Reader(threads, piece_bytes, verify=verify, direct=direct)

    def open(self, paths: Sequence[Path]) -> None:
        """Open files ahead. Raises StreamError where one cannot be."""
        for path in paths:
            self._work.file(path)

    def check_process(self) -> None:
        """Raise StreamError in a process that was forked off: there are no threads to wait for."""
        if os.getpid() != self._process:
            raise StreamError(FORKED)

    def start(self, pieces: Sequence[Piece], target: torch.Tensor) -> Reading:
        """Begin to bring pieces into a flat uint8 tensor on the host."""
        self.check_process()
        reading = Reading(pieces, target.numpy())
        for piece in pieces:
            self._work.tasks.put((reading, piece))
        if self._work.closed:
            _empty(self._work)
        return reading

    def read_now(self, pieces: Sequence[Piece], target: torch.Tensor) -> None:
        """Bring pieces in this thread, every checksum checked; works in a forked process, too."""
        slab = slab_for(self._slab_bytes)
        for piece in pieces:
            self._work.bring(piece, target.numpy(), slab, "always")

    def close(self) -> None:
        """End the threads and close the files; what was still to come fails."""
        self._end()


def _serve(work: _Work, slab: Bytes) -> None:
    while (task := work.tasks.get()) is not None:
        reading, piece = task
        try:
            if reading.error is None:
                work.bring(piece, reading.target, slab, work.verify)
            reading.landed()
        except Exception as error:
            reading.landed(error)
        del task, reading, piece  # the target's memory must not wait for the next task


def _close(work: _Work, threads: Sequence[threading.Thread], process: int) -> None:
    if os.getpid() != process:  # a forked child: no threads, and files that are the parent's too
        return
    work.closed = True
    _empty(work)
    for _ in threads:
        work.tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()
    work.close()


def _empty(work: _Work) -> None:
    """Let all that still waits fail."""
    while True:
        try:
            task = work.tasks.get_nowait()
        except queue.Empty:
            return
        if task is not None:
            task[0].landed(StreamError(CLOSED))
