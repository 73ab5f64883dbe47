"""What the Triton kernels can serve, and in words why not: asked before anything is launched."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from inference_pio.compat import has_triton, triton_interprets
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import device_limits

DTYPES = (torch.bfloat16, torch.float16)
ELEMENTWISE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OLDEST = 80


class Cause(StrEnum):
    """Why a kernel cannot serve."""

    NO_TRITON = "no_triton"
    DEVICE = "device"
    DTYPE = "dtype"
    SHAPE = "shape"
    HEAD_DIM = "head_dim"
    LAYOUT = "layout"
    MASK = "mask"
    DROPOUT = "dropout"
    GRADIENT = "gradient"


@dataclass(frozen=True)
class Support:
    """True where a kernel serves; else the cause, and what to tell the user.

    >>> bool(Support()), bool(Support(Cause.MASK, "it takes no mask"))
    (True, False)
    """

    cause: Cause | None = None
    said: str = ""

    def __bool__(self) -> bool:
        return self.cause is None


YES = Support()


def require(support: Support) -> None:
    """Raise InvalidSetting, with the reason, where a kernel does not serve."""
    if not support:
        raise InvalidSetting(f"the Triton kernel does not serve here: {support.said}.")


def supports_device(device: torch.device) -> Support:
    """Whether a device can run kernels at all."""
    if not has_triton():
        return Support(Cause.NO_TRITON, "the package triton is not installed (it is made for Linux alone)")
    machine = _device(device)
    return YES if machine is None else Support(Cause.DEVICE, machine)


def sizes_of(*tensors: torch.Tensor) -> str:
    """The shapes of tensors, for a reason."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


def _device(device):
    """Why a device cannot run the kernels, or None."""
    if triton_interprets():
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, and the tensors are on {device.type}"
    capability = device_limits(device).capability
    if capability < OLDEST:
        return f"it needs compute capability {OLDEST / 10}, and {device} has {capability / 10}"
    return None
