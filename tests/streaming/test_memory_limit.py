"""A control group's limit counts before the machine's memory, in both versions and from any group above."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from inference_pio.streaming.memory_limit import memory_limit_bytes

TOTAL = psutil.virtual_memory().total


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("membership", "file", "limit"),
    [
        ("0::/\n", "memory.max", 2**27),
        ("0::/user/app\n", "user/app/memory.max", 2**27),
        ("0::/user/app\n", "user/memory.max", 2**27),
        ("0::/not/here\n", "memory.max", 2**27),
        ("4:cpu,memory:/job\n1:name=systemd:/\n", "memory/job/memory.limit_in_bytes", 2**27),
        ("4:memory:/not/here\n", "memory/memory.limit_in_bytes", 2**27),
        ("4:cpu:/job\n", "cpu/job/memory.limit_in_bytes", TOTAL),
    ],
)
def test_the_least_limit_above_this_process_counts(tmp_path: Path, membership: str, file: str, limit: int) -> None:
    write(tmp_path / "own", membership)
    write(tmp_path / "groups" / file, f"{2**27}\n")
    assert memory_limit_bytes(tmp_path / "groups", tmp_path / "own") == limit


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n", "", "nonsense"])
def test_without_a_limit_it_is_the_machines_memory(tmp_path: Path, text: str) -> None:
    write(tmp_path / "own", "0::/\n")
    write(tmp_path / "groups" / "memory.max", text)
    assert memory_limit_bytes(tmp_path / "groups", tmp_path / "own") == TOTAL
    assert memory_limit_bytes(tmp_path / "nothing", tmp_path / "nowhere") == TOTAL


def test_this_machine_gives_a_limit() -> None:
    assert 0 < memory_limit_bytes() <= TOTAL
