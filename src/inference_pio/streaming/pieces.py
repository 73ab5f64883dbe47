"""Pieces: stretches of files with their checksums, small enough to be read and checked one by one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

PIECE_BYTES = 2**20
"""Read in one go, and checked by itself."""


@dataclass(frozen=True)
class Piece:
    """`nbytes` of a file from `offset` on, meant for place `at` of a target, with their CRC-32."""

    file: Path
    offset: int
    nbytes: int
    at: int
    checksum: int


def cut(
    file: Path, offset: int, at: int, raw: torch.Tensor, piece_bytes: int = PIECE_BYTES,
    sums: Mapping[tuple[int, int], int] | None = None,
) -> Iterator[Piece]:  # fmt: skip
    """The pieces of a stretch that holds the bytes `raw` (flat uint8 on the host); `sums` are checksums known by a
    piece's place and length.
    """
    data = raw.numpy().data if raw.numel() else memoryview(b"")
    for start in range(0, len(data), piece_bytes):
        part = data[start : start + piece_bytes]
        known = (sums or {}).get((at + start, len(part)))
        yield Piece(file, offset + start, len(part), at + start, zlib.crc32(part) if known is None else known)
