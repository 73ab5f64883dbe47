"""Stand-ins: a small module of a class with parts of our own, to see by its bits what the class's forward computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from inference_pio.kernels.rms_norm import rms_norm

WIDTH = 16
EPS = 1e-3
"""So large that a norm which leaves it out, or puts it elsewhere, is told."""
OTHER_BITS = "its forward computes something else than is known here"
DTYPES = (torch.float32, torch.bfloat16)


def stand_in(kind: type[nn.Module], parts: Mapping[str, Any]) -> nn.Module:
    """A module of a class, in evaluation mode, made without its constructor: its attributes are the given parts."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, part in parts.items():
        setattr(module, name, part)
    return module.eval()


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers as a normal distribution has them; the global random state stays as it is."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32).to(dtype)


class Linear(nn.Module):
    """A linear layer with drawn weights."""

    def __init__(self, inputs: int, outputs: int, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = drawn(outputs, inputs, seed=seed, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.matrix)


class Norm(nn.Module):
    """An RMSNorm of the library's kind with a drawn weight."""

    def __init__(self, width: int, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(drawn(width, seed=seed, dtype=dtype), False), EPS

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def differs(ours: Callable[[torch.dtype], torch.Tensor], theirs: Callable[[torch.dtype], torch.Tensor]) -> str | None:
    """What a comparison of two computations showed, in float32 and in bfloat16; None where every bit agrees."""
    for dtype in DTYPES:
        try:
            with torch.no_grad():
                agree = torch.equal(theirs(dtype), ours(dtype))
        except Exception as error:  # a foreign forward may need, and raise, anything
            return f"its forward needs more than is known here ({type(error).__name__}: {str(error)[:80]})"
        if not agree:
            return OTHER_BITS
    return None
