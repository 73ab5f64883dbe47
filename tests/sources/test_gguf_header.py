from __future__ import annotations

import random
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from gguf import GGUFEndian, GGUFReader, GGUFWriter

from inference_pio.errors import CorruptFile, SourceError
from inference_pio.sources.gguf_header import read_header
from tests.sources.tiny_gguf import write_tiny_gguf


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def with_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_header_says_what_the_reference_reader_says(tiny: Path) -> None:
    header, reference = read_header(tiny), GGUFReader(tiny)
    assert header.architecture == "llama"
    assert header.settings["llama.embedding_length"] == 64
    assert [(t.name, t.type_name, t.elements) for t in header.tensors] == [
        (t.name, t.tensor_type.name, t.n_elements) for t in reference.tensors
    ]
    assert header.elements == sum(int(t.n_elements) for t in reference.tensors)
    assert list(header.tensor_types.items()) == [("Q4_1", 14), ("Q8_0", 1), ("F32", 5)]


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "big.gguf", "llama", endianess=GGUFEndian.BIG)
    writer.add_block_count(7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(tmp_path / "big.gguf").settings["llama.block_count"] == 7


@pytest.mark.parametrize("data", [b"", b"GG", b"PK\x03\x04 a zip file"])
def test_what_is_no_gguf_file_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CorruptFile, match="is not a GGUF file"):
        read_header(with_bytes(tmp_path / "x.gguf", data))


def test_a_cut_anywhere_in_the_file_is_seen(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    cuts = [4, 8, 20, 24, *random.Random(0).sample(range(24, len(whole)), 60), len(whole) - 1]
    for cut in cuts:
        with pytest.raises(CorruptFile, match=r"cut\.gguf"):
            read_header(with_bytes(tmp_path / "cut.gguf", whole[:cut]))


def test_lengths_that_lie_are_refused_at_once(tmp_path: Path) -> None:
    text = struct.pack("<Q", 1) + b"k"
    lies = {
        "counts": struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1 << 60),
        "text": struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 62),
        "array": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text + struct.pack("<IIQ", 9, 0, 1 << 62),
        "texts": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text + struct.pack("<IIQ", 9, 8, 1 << 62),
        "nested": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text + struct.pack("<IIQ", 9, 9, 1),
        "kind": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text + struct.pack("<I", 99),
        "version": struct.pack("<4sIQQ", b"GGUF", 77, 0, 0),
        "type": struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + text + struct.pack("<IQIQ", 1, 8, 9999, 0),
        "dimensions": struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + text + struct.pack("<I", 1 << 30),
        "size": struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + text + struct.pack("<IQIQ", 1, 1 << 60, 0, 0),
    }
    for name, data in lies.items():
        with pytest.raises(CorruptFile, match="damaged or cut short"):
            read_header(with_bytes(tmp_path / f"{name}.gguf", data + bytes(64)))


def test_bytes_changed_at_random_never_raise_anything_else(tiny: Path, tmp_path: Path) -> None:
    whole, dice = tiny.read_bytes(), random.Random(1)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(3):
            data[dice.randrange(4, 6000)] = dice.randrange(256)
        with suppress(CorruptFile):
            read_header(with_bytes(tmp_path / "changed.gguf", bytes(data)))


def test_a_folder_in_its_place_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_header(tmp_path)
