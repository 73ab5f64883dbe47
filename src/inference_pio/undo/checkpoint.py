"""Originals that need no copy: the model's own local safetensors files, where their bytes match."""

from __future__ import annotations

import io
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference_pio.errors import VaultError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorInFile:
    """Where one tensor lies in a safetensors file."""

    file: Path
    name: str
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """The tensor, read with plain reads: a file cut short is an error here, not a crash."""
        raw = torch.empty(self.nbytes, dtype=torch.uint8)
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(self.offset)
                got = _read_into(stream, raw.numpy().data)
        except OSError as error:
            raise VaultError(
                f"cannot read the original of {self.name!r} from {self.file}: {error.strerror}. "
                "Put the checkpoint's file back and try again."
            ) from error
        if got != self.nbytes:
            raise VaultError(f"{self.file} is shorter than when it was read first: {self.name!r} is gone from it.")
        return raw.view(self.dtype).reshape(self.shape) if self.nbytes else torch.empty(self.shape, dtype=self.dtype)


def _read_into(stream: io.RawIOBase, target: memoryview) -> int:
    done = 0
    while done < len(target) and (got := stream.readinto(target[done:])):
        done += got
    return done


def read_header(file: Path) -> dict[str, TensorInFile]:
    """The tensors of one safetensors file; every offset is checked against the file's size, every shape against both.

    Raises ValueError where the file is not what it says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise ValueError("shorter than a header")
        (length,) = struct.unpack("<Q", start)
        if length > min(LARGEST_HEADER_BYTES, size - 8):
            raise ValueError("a header longer than the file")
        text = stream.read(length)
    try:
        entries = json.loads(text)
    except RecursionError:
        raise ValueError("a header nested beyond reason") from None
    if not isinstance(entries, dict):
        raise ValueError("a header that is no table")
    found = {}
    for name, entry in entries.items():
        if name != "__metadata__" and entry["dtype"] in DTYPES:
            found[name] = _checked(file, name, entry, data_at=8 + length, data_bytes=size - 8 - length)
    return found


def _checked(file: Path, name: str, entry: dict[str, Any], *, data_at: int, data_bytes: int) -> TensorInFile:
    first, last = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        raise ValueError(f"{name} has sizes that are no whole numbers")
    if not first <= last <= data_bytes:
        raise ValueError(f"{name} lies outside the file")
    if math.prod(shape) * dtype.itemsize != last - first:
        raise ValueError(f"{name} has other bytes than its shape needs")
    return TensorInFile(file, name, data_at + first, last - first, dtype, shape)


class Checkpoint:
    """The safetensors files of a folder, asked by tensor name."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, TensorInFile] = {}
        for file in sorted(filter(Path.is_file, folder.glob("*.safetensors"))):
            try:
                self.tensors.update(read_header(file))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a file that cannot be trusted is not a source of originals: they are parked elsewhere

    def holding(self, name: str, tensor: torch.Tensor) -> TensorInFile | None:
        """The file's tensor of this name, if it gives these very bits in this tensor's dtype."""
        found = self.tensors.get(name)
        if found is None or found.shape != tuple(tensor.shape):
            return None
        try:
            stored = found.read().to(tensor.dtype)
        except VaultError:  # the file has changed since its header was read
            return None
        return found if same_bits(stored, tensor.detach().cpu()) else None


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the bit, not-a-numbers and signed zeros included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    as_bytes = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*as_bytes)
