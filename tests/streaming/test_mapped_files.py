"""Pages of mapped files leave memory and come back as they were; other memory is left alone."""

from __future__ import annotations

import mmap
from pathlib import Path

import psutil
import pytest
import torch

from inference_pio.streaming import mapped_files as module
from inference_pio.streaming.mapped_files import page_out_mapped

NBYTES = 64 * 2**20


def mapped_bytes() -> int:
    return int(psutil.Process().memory_full_info().rss)


@pytest.mark.skipif(not module.MAPS.exists(), reason="this system does not tell what is mapped")
def test_pages_of_a_mapped_file_leave_memory_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    content = torch.arange(NBYTES // 8)
    file.write_bytes(content.numpy().tobytes())
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as memory:
        data = torch.frombuffer(bytearray(b"\0" * 8), dtype=torch.int64)
        view = memoryview(memory)
        seen = sum(view[place] for place in range(0, NBYTES, 4096))
        address = _address(memory)
        before = mapped_bytes()
        done = page_out_mapped([(address + 1, NBYTES - 1)])
        if not done:
            pytest.skip("this system does not know the advice")
        assert done >= NBYTES - 2 * 4096
        assert mapped_bytes() < before - NBYTES // 2
        assert sum(view[place] for place in range(0, NBYTES, 4096)) == seen
        del view, data


def test_memory_of_no_file_is_left_alone() -> None:
    tensor = torch.ones(2**20)
    assert page_out_mapped([(tensor.data_ptr(), tensor.nbytes), (0, 100), (4096, 10)]) == 0
    assert (tensor == 1).all()


def test_where_nothing_tells_what_is_mapped_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAPS", tmp_path / "nothing")
    assert page_out_mapped([(4096, 8192)]) == 0


def _address(memory: mmap.mmap) -> int:
    import numpy as np

    return int(np.frombuffer(memory, dtype=np.uint8).ctypes.data)
