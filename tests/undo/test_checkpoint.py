from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inference_pio.errors import VaultError
from inference_pio.undo.checkpoint import DTYPES, Checkpoint, read_header, same_bits


def write(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_what_the_library_writes_is_read_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {
        name: torch.arange(24, dtype=torch.uint8).view(dtype).clone() if dtype != torch.bool else torch.tensor([True])
        for name, dtype in DTYPES.items()
    }
    tensors["empty"], tensors["scalar"] = torch.zeros(0, 3), torch.tensor(-0.0)
    save_file(tensors, str(tmp_path / "m.safetensors"), metadata={"format": "pt"})
    found = read_header(tmp_path / "m.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bits(found[name].read(), tensor), name


BAD_HEADERS: dict[str, Any] = {
    "not json": b"{{{{",
    "a list": [1, 2],
    "a word": "x",
    "nested beyond reason": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "no dtype": {"x": {"shape": [2], "data_offsets": [0, 8]}},
    "entry is a list": {"x": [1]},
    "outside": entry(offsets=(0, 80), shape=(20,)),
    "backwards": entry(offsets=(8, 0)),
    "negative": entry(offsets=(-8, 0)),
    "negative shape": entry(shape=(-2, -1)),
    "one offset": entry(offsets=(0,)),
    "fractions": entry(offsets=(0.0, 8.0)),
    "true is no number": entry(shape=(True, 2)),
    "words as sizes": entry(shape=("2",)),
    "more shape than bytes": entry(shape=(3,)),
    "fewer shape than bytes": entry(shape=(1,)),
    "huge shape": entry(shape=(2**62, 2**62)),
    "dtype is a list": entry(dtype=["F32"]),
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_a_file_that_is_not_what_it_says_is_no_source_of_originals(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "bad.safetensors", BAD_HEADERS[kind], b"\0" * 8)
    save_file({"good": torch.ones(2)}, str(tmp_path / "good.safetensors"))
    checkpoint = Checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["good"]
    assert checkpoint.holding("x", torch.zeros(2)) is None


@pytest.mark.parametrize("content", [b"", b"\1\2\3", struct.pack("<Q", 2**63), struct.pack("<Q", 10) + b"{}"])
def test_a_file_too_short_for_its_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "short.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="header"):
        read_header(tmp_path / "short.safetensors")
    assert Checkpoint(tmp_path).tensors == {}


def test_folders_and_pipes_that_are_named_like_checkpoints_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "gone")
    assert Checkpoint(tmp_path).tensors == {}


def test_types_we_do_not_know_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "new.safetensors", entry(dtype="F4_FUTURE") | {"__metadata__": {"a": "b"}}, b"\0" * 8)
    assert Checkpoint(tmp_path).tensors == {}


def test_only_the_very_bits_of_the_very_name_count(tmp_path: Path) -> None:
    save_file({"x": torch.tensor([0.0, 1.0])}, str(tmp_path / "m.safetensors"))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.holding("x", torch.tensor([0.0, 1.0])) is not None
    assert checkpoint.holding("x", torch.tensor([0.0, 1.0], dtype=torch.bfloat16)) is not None
    assert checkpoint.holding("x", torch.tensor([-0.0, 1.0])) is None
    assert checkpoint.holding("x", torch.tensor([[0.0, 1.0]])) is None
    assert checkpoint.holding("y", torch.tensor([0.0, 1.0])) is None


def test_a_file_that_is_gone_or_cut_is_told(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"x": torch.ones(100)}, str(file))
    found = read_header(file)["x"]
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(VaultError, match="shorter than when it was read first"):
        found.read()
    file.unlink()
    with pytest.raises(VaultError, match="Put the checkpoint's file back"):
        found.read()


def test_same_bits_tells_not_a_numbers_zeros_types_and_shapes_apart() -> None:
    quiet, loud = torch.tensor([0x7FC00001, 0x7FC00002], dtype=torch.int32).view(torch.float32)
    assert same_bits(quiet, quiet)
    assert not same_bits(quiet, loud)
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert same_bits(torch.zeros(0), torch.zeros(0))
    assert same_bits(torch.arange(6).reshape(2, 3).t(), torch.arange(6).reshape(2, 3).t().contiguous())
