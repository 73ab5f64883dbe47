"""Which fast paths there are on this machine, found out by trying; each with the reason where it is missing."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from inference_pio.compat import has_fast_bfloat16_matmul, has_int8_packed_matmul
from inference_pio.errors import InvalidSetting


@dataclass(frozen=True)
class Backend:
    """One fast path; `missing` says why it cannot serve here, and is None where it can."""

    name: str
    missing: str | None
    serves: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_backends() -> list[Backend]:
    """What this machine and these versions offer.

    >>> "CUDA" in [backend.name for backend in find_backends()]
    True
    """
    return [
        Backend("CUDA", _why_no_cuda(), "models on an NVIDIA GPU"),
        Backend("Triton", _why_no_triton(), "fused kernels on a GPU"),
        Backend(
            "bfloat16 matmul on the CPU", None if has_fast_bfloat16_matmul() else "this CPU has no instructions for it",
            "plain bfloat16 models",
        ),
        Backend(
            "int8 packed matmul on the CPU",
            None if has_int8_packed_matmul() else "this build of torch has none that computes right here",
            "int8 weights without unpacking them",
        ),
    ]  # fmt: skip


def usable_device(name: str | None) -> torch.device:
    """A device by its name; without one the GPU, where there is one, else the CPU. Raises InvalidSetting."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # is it there, on this machine, in this build of torch?
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise InvalidSetting(f"device={name!r} cannot be used with torch {torch.__version__}: {said}.") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidSetting(f"device={name!r} cannot be examined: give cpu, cuda or cuda:1.")
    return device


def memory_of(device: torch.device) -> dict[str, int]:
    """Total and free bytes of this machine's memory, and of the GPU's where that is the device.

    >>> sorted(memory_of(torch.device("cpu")))
    ['memory_bytes', 'memory_free_bytes']
    """
    host = psutil.virtual_memory()
    found = {"memory_bytes": int(host.total), "memory_free_bytes": int(host.available)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"device_memory_bytes": int(total), "device_memory_free_bytes": int(free)}
    return found


def _why_no_cuda() -> str | None:
    if torch.cuda.is_available():
        return None
    return "this build of torch is for the CPU" if torch.version.cuda is None else "torch finds no GPU and driver"


def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None if torch.cuda.is_available() else "it needs a GPU"
