"""Kernels that begin while the one in front of them still runs, and read what it wrote only once it has ended.

CUDA calls this programmatic dependent launch. A program of each such kernel waits at least, so that one which has ended
vouches for all that stood in front of it. One that has begun vouches for nothing: most let the next begin before they
wait. So what reads before it waits (attention: positions, lengths, pages) needs a kernel between it and the writer that
has waited before it let others begin, as the look-up of a token's row does, or that did not overlap.
"""

from __future__ import annotations

from typing import Any

import torch

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from inference_pio.kernels.triton.launch import device_limits
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FIRST_OVERLAPPING = 90
"""The compute capability from which a kernel may begin before the one in front of it has ended."""


@triton.jit
def wait_for_others(INTERPRETED: tl.constexpr):
    """The kernel behind this one may begin; what the one in front wrote may be read from here on."""
    let_others_begin(INTERPRETED)
    wait(INTERPRETED)


@triton.jit
def wait(INTERPRETED: tl.constexpr):
    """What the kernel in front wrote may be read from here on; the one behind may not begin by this."""
    if not INTERPRETED:
        gdc_wait()


@triton.jit
def let_others_begin(INTERPRETED: tl.constexpr):
    """The kernel behind this one may begin, where it waits by itself."""
    if not INTERPRETED:
        gdc_launch_dependents()


def may_overlap(device: torch.device) -> bool:
    """Whether a device starts kernels before the one in front of them has ended.

    >>> may_overlap(torch.device("cpu"))
    False
    """
    return device.type == "cuda" and device_limits(device).capability >= FIRST_OVERLAPPING


def overlapping(dependent: bool) -> dict[str, Any]:
    """Flags and options of a launch that is `dependent` on the one in front of it, or is not.

    >>> overlapping(False)
    {'DEPENDENT': False, 'INTERPRETED': False}
    """
    interpreted = triton_interprets()
    options = {"launch_pdl": True} if dependent and not interpreted else {}
    return {"DEPENDENT": dependent, "INTERPRETED": interpreted, **options}
