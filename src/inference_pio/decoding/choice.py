"""With what the steps of a model are computed: chosen once, here, and said in the receipt."""

from __future__ import annotations

import torch

from inference_pio.decoding.host import HostOperations
from inference_pio.decoding.operations import Operations, PlainOperations
from inference_pio.decoding.recordable import RecordableOperations
from inference_pio.kernels.elementwise_backend import TRITON, choose_elementwise_backend


def choose_operations(device: torch.device, dtype: torch.dtype, *, exact: bool) -> Operations:
    """Our kernels on a GPU that they serve; the library's roundings where they are wanted, or elsewhere.

    >>> choose_operations(torch.device("cpu"), torch.bfloat16, exact=False).name
    'torch, in few calls'
    """
    if device.type != "cuda":
        return PlainOperations() if exact else HostOperations()
    if exact or choose_elementwise_backend(device, dtype) != TRITON:
        return RecordableOperations()
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.kernels.triton.overlap import may_overlap

    overlaps = may_overlap(device)
    return FusedOperations(dependent=overlaps, overlapping=overlaps, ahead=overlaps)
