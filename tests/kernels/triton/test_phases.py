"""The Triton kernels as a backend of exact attention: every phase that reads no mask, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention_backends import HeadShape, lacks
from inference_pio.kernels.attention_check import why_it_fails
from inference_pio.kernels.attention_choice import READ_A_MASK, TRITON, Phase
from tests.kernels.triton.conftest import Interpreted

SHAPES = {"grouped": HeadShape(6, 2, 64, 64), "wide": HeadShape(2, 2, 128, 128)}
CPU = torch.device("cpu")


def outcome(phase: Phase, shape: HeadShape) -> tuple[str | None, str | None]:
    known = lacks(TRITON, phase, shape, torch.bfloat16, CPU)
    return known, None if known else why_it_fails(TRITON, phase, shape, torch.bfloat16, CPU)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in READ_A_MASK])
def test_interpreted_kernels_pass_the_check_of_every_phase(phase: Phase, shape: str, interpreted: Interpreted) -> None:
    assert interpreted(outcome, phase, SHAPES[shape]) == (None, None)


@pytest.mark.parametrize(
    ("phase", "shape", "reason"),
    [
        (Phase.MASKED, SHAPES["wide"], "no other mask"),
        (Phase.PREFILL, HeadShape(4, 2, 24, 24), "heads are 24 wide"),
        (Phase.PREFILL, HeadShape(4, 4, 64, 32), "one width"),
    ],
)
def test_interpreted_what_they_lack_is_told(
    phase: Phase, shape: HeadShape, reason: str, interpreted: Interpreted
) -> None:
    assert reason in str(interpreted(outcome, phase, shape)[0])
