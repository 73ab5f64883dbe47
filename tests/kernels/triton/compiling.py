"""Compile kernels for GPUs that are not here, from the very calls that would launch them, and read the machine code."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inference_pio.kernels.triton.launch import AMPERE, HOPPER, Limits

MACHINES = {80: AMPERE, 90: HOPPER}
THREADS_OF_A_WARP = 32
REGISTERS = 65536
MOST_PROGRAMS = 65535
"""Of a launch along its second and third axis; the first takes 2**31."""
WANTED = re.compile(
    r"\b(HGMMA|HMMA|LDL|STL|UTMALDG|LDGSTS|LDG|STG|FFMA|I2F|ACQBULK|PREEXIT|BAR|LDSM|DEPBAR|MUFU)((?:\.[A-Z0-9]+)*)"
)


@dataclass(frozen=True)
class Code:
    """What a kernel became: `counts` of instructions, such as {"LDGSTS 128": 32}, and the `order` in which they stand.

    There ACQBULK waits for the end of the kernel in front, and PREEXIT lets the next one begin.
    """

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    counts: Counter[str]
    order: tuple[str, ...] = field(repr=False)

    def assert_it_fits(self, machine: Limits) -> None:
        assert self.stack_bytes == 0, self
        assert self.counts["LDL"] + self.counts["STL"] == 0, f"spills: {self}"
        assert self.registers * self.threads <= REGISTERS, self
        assert self.shared_bytes <= machine.shared_bytes, self


class _AbsentGpu:
    """As much of a Triton driver as compiling asks for. Its device is no number: no real one's kernels are mixed up."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, THREADS_OF_A_WARP)

    def get_current_device(self) -> str:
        return f"absent sm_{self.capability}"

    def get_current_stream(self, device: str) -> int:
        return 0


class Compiler:
    """Between `for_machine` and the end of the test, launching the given kernels compiles them and does no more."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder, self.found, self.given = patch, folder, list[Code](), list[Any]()
        patch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))

    def for_machine(self, capability: int, *kernels: Any) -> None:
        from triton.runtime import driver

        from inference_pio.kernels.triton import row_codes, support

        self.patch.setattr(driver, "_active", _AbsentGpu(capability))
        self.patch.setattr(support, "_device", lambda device: None)
        self.patch.setattr(row_codes, "device_limits", lambda device: MACHINES[capability])
        for kernel in kernels:
            if any(kernel is given for given in self.given):
                continue
            self.given.append(kernel)
            self.patch.setattr(kernel, "run", self._instead(kernel.run))

    def _instead(self, run: Any) -> Any:
        def compile_only(*arguments: Any, warmup: bool, **options: Any) -> None:
            assert all(size <= MOST_PROGRAMS for size in options["grid"][1:]), options["grid"]
            compiled = run(*arguments, warmup=True, **options)
            self.found.append(self._read(compiled))

        return compile_only

    def _read(self, compiled: Any) -> Code:
        from triton import knobs

        cubin = self.folder / f"{len(self.found)}.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin))
        assembly = _run(knobs.nvidia.nvdisasm.path, "-c", str(cubin))
        registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
        order = tuple(_kind(*match) for match in WANTED.findall(assembly))
        threads = compiled.metadata.num_warps * THREADS_OF_A_WARP
        return Code(compiled.metadata.name, registers, stack, compiled.metadata.shared, threads, Counter(order), order)


def _kind(name: str, suffixes: str) -> str:
    """An instruction's name and its width in bits, where it tells one: 32 is not told."""
    widths = [word for word in suffixes.split(".") if word in ("128", "64", "U16", "U8") and "MMA" not in name]
    return " ".join([name, *widths])


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
