"""Control: the least share that holds the target, by head, dense without knowledge, and it follows what changes."""

from __future__ import annotations

import torch

from inference_pio.kernels.block_choice import DENSE
from inference_pio.sparsity.coverage_control import SHARES, CoverageControl, CoverageTarget


def _rows(*by_head: list[float]) -> torch.Tensor:
    """One audited row: coverage by head and share."""
    return torch.tensor(by_head)[None]


def _ramp(first: int, low: float = 0.5) -> list[float]:
    """Coverage that is `low` below a share of the grid, and full from it on."""
    return [low] * first + [1.0] * (len(SHARES) - first)


def test_each_head_keeps_the_least_share_that_holds() -> None:
    control = CoverageControl(3, CoverageTarget(0.95))
    control.learn(_rows(_ramp(2), _ramp(7), _ramp(len(SHARES))))
    torch.testing.assert_close(control.shares(), torch.tensor([SHARES[2], SHARES[7], DENSE]))


def test_one_row_in_twenty_may_be_low_but_not_more() -> None:
    control = CoverageControl(1, CoverageTarget(0.95))
    for _ in range(19):
        control.learn(_rows([0.999] * len(SHARES)))
    control.learn(_rows(_ramp(5, low=0.9)))
    torch.testing.assert_close(control.shares(), torch.tensor([SHARES[0]]))
    control.learn(_rows(_ramp(5, low=0.9)))
    torch.testing.assert_close(control.shares(), torch.tensor([SHARES[5]]))


def test_the_mean_must_hold_too() -> None:
    control = CoverageControl(1, CoverageTarget(0.95))
    control.learn(_rows(_ramp(4, low=0.97)))
    torch.testing.assert_close(control.shares(), torch.tensor([SHARES[4]]))


def test_what_was_learned_fades() -> None:
    control = CoverageControl(1, CoverageTarget(0.95))
    for _ in range(20):
        control.learn(_rows(_ramp(len(SHARES))))
    assert control.shares().item() == DENSE
    for _ in range(40):
        control.forget()
        control.learn(_rows(_ramp(0)).expand(8, 1, -1))
    torch.testing.assert_close(control.shares(), torch.tensor([SHARES[0]]))
