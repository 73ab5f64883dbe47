"""Pieces cover a stretch without a gap, each with the checksum of its own bytes."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from inference_pio.streaming.pieces import Piece, cut

FILE = Path("weights")


@pytest.mark.parametrize("nbytes", [1, 7, 8, 9, 24])
def test_pieces_cover_a_stretch_without_a_gap(nbytes: int) -> None:
    raw = torch.arange(nbytes, dtype=torch.uint8)
    pieces = list(cut(FILE, 100, 5, raw, piece_bytes=8))
    assert [piece.nbytes for piece in pieces] == [8] * (nbytes // 8) + [nbytes % 8] * (nbytes % 8 > 0)
    end = 0
    for piece in pieces:
        assert (piece.offset, piece.at) == (100 + end, 5 + end)
        assert piece.checksum == zlib.crc32(bytes(raw[end : end + piece.nbytes].tolist()))
        end += piece.nbytes
    assert end == nbytes


def test_nothing_has_no_pieces() -> None:
    assert list(cut(FILE, 0, 0, torch.empty(0, dtype=torch.uint8))) == []


def test_a_piece_is_known_again() -> None:
    assert {Piece(FILE, 0, 1, 2, 3)} == {Piece(FILE, 0, 1, 2, 3)}
