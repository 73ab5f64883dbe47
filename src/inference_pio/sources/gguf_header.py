"""The head of a `.gguf` file, read with a bounds check at every step: a damaged or hostile file cannot make it run on.

The reader of the `gguf` package trusts the lengths it finds; this one is asked first.
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from inference_pio.errors import CorruptFile, MissingExtra, SourceError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's entry: its name, the name of its storage type ("Q4_1"), and its number of elements."""

    name: str
    type_name: str
    elements: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself: its settings (arrays are left out, only named) and its tensors."""

    settings: dict[str, object]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.settings.get("general.architecture", "unknown"))

    @property
    def elements(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_types(self) -> dict[str, int]:
        """Storage type -> number of tensors, the type with the most elements first."""
        weight: Counter[str] = Counter()
        for tensor in self.tensors:
            weight[tensor.type_name] += tensor.elements
        count = Counter(tensor.type_name for tensor in self.tensors)
        return {name: count[name] for name, _ in weight.most_common()}


def read_header(path: Path) -> GgufHeader:
    """Read and check the head of a `.gguf` file, and that the file holds every tensor it lists.

    Raises `CorruptFile` (damaged, cut short, not a GGUF file), `SourceError`, `MissingExtra`.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CorruptFile(f"{path} is not a GGUF file: it does not begin with the letters GGUF.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Walker(data).header()
    except (struct.error, _Damage, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path} is damaged or cut short ({error}): fetch it again.") from error
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}.") from error


class _Damage(Exception):
    pass


class _Walker:
    """A position in the file that moves only forward and never past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 4
        # a file of the other byte order shows its small version number in the upper half
        self.order = "<" if struct.unpack_from("<I", data, 4)[0] & 0xFFFF else ">"

    def header(self) -> GgufHeader:
        version = self._number("I")
        if version not in (2, 3):
            raise _Damage(f"version {version} of the format is not known")
        tensor_count, setting_count = self._number("Q"), self._number("Q")
        settings = {self._text(): self._value(self._number("I")) for _ in range(setting_count)}
        entries = [self._entry() for _ in range(tensor_count)]
        self._require_data(entries, settings.get("general.alignment", 32))
        return GgufHeader(settings, tuple(tensor for tensor, _ in entries))

    def _number(self, code: str) -> int:
        (value,) = struct.unpack_from(self.order + code, self.data, self.at)
        self.at += struct.calcsize(self.order + code)
        return value  # type: ignore[no-any-return]

    def _text(self) -> str:
        start, end = self._skip(self._number("Q"))
        return str(self.data[start:end], "utf-8")

    def _skip(self, length: int) -> tuple[int, int]:
        start, end = self.at, self.at + length
        if end > len(self.data):
            raise _Damage(f"{length:,} bytes from byte {start:,} pass its end")
        self.at = end
        return start, end

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            self._skip_array()
            return None
        if kind not in _SCALARS:
            raise _Damage(f"value type {kind} at byte {self.at} is not known")
        return self._number(_SCALARS[kind])

    def _skip_array(self) -> None:
        kind, length = self._number("I"), self._number("Q")
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(self.order + _SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(length):
                self._skip(self._number("Q"))
        else:
            raise _Damage(f"an array of type {kind} at byte {self.at} is not known")

    def _entry(self) -> tuple[GgufTensor, int]:
        """One tensor's entry and the first byte after its data, counted from the start of all data."""
        name, dimensions = self._text(), self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _Damage(f"tensor {name!r} has {dimensions} dimensions")
        elements = math.prod(self._number("Q") for _ in range(dimensions))
        type_name, size_bytes = _storage(name, self._number("I"), elements)
        return GgufTensor(name, type_name, elements), self._number("Q") + size_bytes

    def _require_data(self, entries: list[tuple[GgufTensor, int]], alignment: object) -> None:
        if not isinstance(alignment, int) or alignment <= 0:
            raise _Damage(f"an alignment of {alignment!r}")
        start = -(-self.at // alignment) * alignment
        need_bytes = start + max((end for _, end in entries), default=0)
        if need_bytes > len(self.data):
            raise _Damage(f"it holds {len(self.data):,} of {need_bytes:,} bytes")


def _storage(name: str, type_number: int, elements: int) -> tuple[str, int]:
    """A storage type's name, and the bytes that so many elements take in it."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(type_number)
    except ValueError as error:
        raise _Damage(f"tensor {name!r} has the unknown storage type {type_number}") from error
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    return kind.name, -(-elements // block_elements) * block_bytes


def require_gguf_packages() -> None:
    """Raise `MissingExtra` unless what reads a `.gguf` file is installed."""
    for package in ("gguf", "accelerate"):  # the library refuses a .gguf file without the latter
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "gguf", "reading a .gguf file")
