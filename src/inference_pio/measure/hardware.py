"""Which class of hardware a device is of: what profiles are chosen by, and what `pio doctor` tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from inference_pio.configuration.hardware import check_hardware_class

SMALL_BYTES = 16 * 2**30
"""What a GPU sold as one of 16 GB has at most."""


@dataclass(frozen=True)
class Hardware:
    """A class by name, and what told it."""

    name: str
    why: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def hardware_of(device: torch.device, asked: str | None = None) -> Hardware:
    """The class of a device, or the one that is asked for in its place. Raises UnknownName for what is no class.

    >>> hardware_of(torch.device("cpu")).name
    'cpu'
    """
    if asked is not None:
        return Hardware(check_hardware_class(asked), "as asked for")
    if device.type != "cuda" or torch.version.hip is not None:
        told = device.type if torch.version.hip is None else f"{device.type} by ROCm"
        return Hardware("cpu", f"the device is {told}, no NVIDIA GPU")
    found = torch.cuda.get_device_properties(device)
    return class_of_gpu(found.name, (found.major, found.minor), int(found.total_memory))


def class_of_gpu(name: str, capability: tuple[int, int], total_bytes: int) -> Hardware:
    """The class of a GPU by its compute capability and memory; newer and older ones are told to be the nearest.

    >>> class_of_gpu("NVIDIA H100", (9, 0), 80 * 2**30).name
    'hopper'
    """
    told = f"{name}, compute capability {capability[0]}.{capability[1]}, {total_bytes / 2**30:.0f} GiB"
    if total_bytes <= SMALL_BYTES:
        return Hardware("small_gpu", f"{told}: at most 16 GB")
    if capability >= (9, 0):
        newer = ": newer than Hopper, and not measured" if capability > (9, 0) else ""
        return Hardware("hopper", told + newer)
    older = ": older than Ampere, and not measured" if capability < (8, 0) else ""
    return Hardware("ampere_ada", told + older)
