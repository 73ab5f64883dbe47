"""What the tests of streaming share: files of weights cut into pieces, and small processes that do as users' do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from inference_pio.streaming.pieces import Piece, cut


def weights_in(folder: Path, nbytes: int = 10_000, seed: int = 0, piece_bytes: int = 1000) -> tuple[Path, list[Piece]]:
    """A file of random bytes behind a header of 100, and its pieces."""
    raw = random_bytes(nbytes, seed)
    file = folder / f"weights-{seed}"
    file.write_bytes(bytes(100) + raw.numpy().tobytes())
    return file, list(cut(file, 100, 0, raw, piece_bytes))


def random_bytes(nbytes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def flip(file: Path, offset: int) -> None:
    """Change one byte of a file where it lies."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def run(code: str, *given: object) -> subprocess.CompletedProcess[str]:
    """A Python process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, given)], capture_output=True, text=True, env=environment, check=False
    )
