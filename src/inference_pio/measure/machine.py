"""What the numbers were measured on: no figure means anything without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import inference_pio

PACKAGES = ("transformers", "triton")


@dataclass(frozen=True)
class Machine:
    """The device, the software and the state of this package; nothing in it names a place on the machine."""

    device: str
    cpu: str
    cores: int
    threads: int
    cpu_capability: str
    platform: str
    versions: dict[str, str | None]
    commit: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)
        commit = f", commit {self.commit}" if self.commit else ""
        where = self.cpu if self.device == "cpu" else f"{self.device} beside {self.cpu}"
        return f"{where}, {self.cores} cores, {self.threads} threads, {self.cpu_capability}; {packages}{commit}"


def describe_machine(device: torch.device | str = "cpu") -> Machine:
    """Describe this machine as seen from a model on `device`.

    >>> describe_machine().device
    'cpu'
    """
    return Machine(
        device=_device_name(torch.device(device)),
        cpu=_cpu_name(),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        platform=f"{platform.system()} {platform.machine()}",
        versions=_versions(),
        commit=_commit(),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Those this process may run on, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str | None]:
    # torch itself says which build it is (+cpu, +cu130); its package may not
    own = {
        "python": platform.python_version(),
        "inference-pio": inference_pio.__version__,
        "torch": str(torch.__version__),
    }
    return {**own, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this very file is tracked in, and whether files differ from it; else None."""
    folder, name = Path(__file__).parent, Path(__file__).name
    # an environment inside someone else's checkout is not that checkout
    if _git(folder, "ls-files", "--error-unmatch", name) is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    try:
        answer = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
