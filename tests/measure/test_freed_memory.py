from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory until it is asked")
def test_freed_memory_goes_back_to_the_system() -> None:
    code = """
import psutil, torch
from inference_pio.measure.freed_memory import return_freed_memory
torch.ones(30 * 2**20, dtype=torch.uint8)  # raises the size up to which the C library keeps what is freed
blocks = [torch.ones(2**20, dtype=torch.uint8) for _ in range(300)]
last = torch.ones(2**20, dtype=torch.uint8)
blocks.clear()
kept = psutil.Process().memory_info().rss
return_freed_memory()
print(kept - psutil.Process().memory_info().rss)
"""
    freed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(freed) > 200 * 2**20
