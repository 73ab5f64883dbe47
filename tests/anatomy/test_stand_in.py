"""A stand-in computes by the forward of its class; what differs is told, whatever it raises."""

from __future__ import annotations

import torch
from torch import nn

from inference_pio.anatomy.stand_in import DTYPES, EPS, OTHER_BITS, Linear, Norm, differs, drawn, stand_in


class Scaled(nn.Module):
    def __init__(self) -> None:
        raise AssertionError("a stand-in is made without its constructor")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale  # type: ignore[operator, no-any-return]


def test_it_is_made_of_the_parts_alone() -> None:
    module = stand_in(Scaled, {"layer": Linear(3, 2, 0, torch.float32), "scale": 2.0})
    assert not module.training
    assert torch.equal(module(torch.ones(1, 3)), 2 * module.layer(torch.ones(1, 3)))


def test_numbers_are_drawn_beside_the_global_state() -> None:
    before = torch.get_rng_state()
    assert torch.equal(drawn(2, 3, seed=1), drawn(2, 3, seed=1))
    assert not torch.equal(drawn(2, 3, seed=1), drawn(2, 3, seed=2))
    Norm(4, 0, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        assert drawn(2, seed=0).device.type == "cpu"
        assert Norm(4, 0, torch.float32).weight.device.type == "cpu"


def test_a_norm_has_an_epsilon_that_shows() -> None:
    norm = Norm(4, 0, torch.float32)
    assert norm.variance_epsilon == EPS
    assert not torch.allclose(norm(1e-2 * torch.ones(4)), norm(torch.ones(4)))


def test_what_differs_is_told() -> None:
    met = []

    def seen(dtype: torch.dtype) -> torch.Tensor:
        met.append(dtype)
        return torch.ones(2, dtype=dtype)

    def broken(dtype: torch.dtype) -> torch.Tensor:
        raise KeyError("gate")

    assert differs(seen, seen) is None
    assert met == [dtype for dtype in DTYPES for _ in range(2)]
    assert differs(seen, lambda dtype: torch.full((2,), 1 + 2**-7, dtype=dtype)) == OTHER_BITS
    assert differs(seen, broken) == "its forward needs more than is known here (KeyError: 'gate')"
