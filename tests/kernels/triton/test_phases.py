"""The Triton kernels as a backend of exact attention: every phase but decoding with a mask, in the interpreter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from inference_pio.kernels.attention_backends import HeadShape, lacks
from inference_pio.kernels.attention_check import why_it_fails
from inference_pio.kernels.attention_choice import TRITON, Phase
from tests.kernels.triton.conftest import Interpreted

SHAPES = {"grouped": HeadShape(6, 2, 64, 64), "wide": HeadShape(2, 2, 128, 128)}
CPU = torch.device("cpu")


def outcome(phase: Phase, shape: HeadShape) -> tuple[str | None, str | None]:
    known = lacks(TRITON, phase, shape, torch.bfloat16, CPU)
    return known, None if known else why_it_fails(TRITON, phase, shape, torch.bfloat16, CPU)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.MASKED_DECODE])
def test_interpreted_kernels_pass_the_check_of_every_phase(phase: Phase, shape: str, interpreted: Interpreted) -> None:
    assert interpreted(outcome, phase, SHAPES[shape]) == (None, None)


@pytest.mark.parametrize(
    ("phase", "shape", "reason"),
    [
        (Phase.MASKED_DECODE, SHAPES["wide"], "no other mask"),
        (Phase.PREFILL, HeadShape(4, 2, 24, 24), "heads are 24 wide"),
        (Phase.PREFILL, HeadShape(4, 4, 64, 32), "one width"),
    ],
)
def test_interpreted_what_they_lack_is_told(
    phase: Phase, shape: HeadShape, reason: str, interpreted: Interpreted
) -> None:
    assert reason in str(interpreted(outcome, phase, shape)[0])


def outcome_of_a_wrong_one(phase: Phase, fault: str) -> str | None:
    """As if no tile were mixed, or one fewer were read."""
    from inference_pio.kernels.triton import flash

    right = flash.tiles_of

    def tiles_of(*given: object) -> object:
        tiles = right(*given)  # type: ignore[arg-type]
        counts = tiles.counts.clone()
        if fault == "blind to masks":
            counts[..., 0] = counts[..., 1]
        if fault == "short of a tile":
            counts[..., 1] -= 1
        return dataclasses.replace(tiles, counts=counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "tiles_of", tiles_of)
        return why_it_fails.__wrapped__(TRITON, phase, SHAPES["grouped"], torch.bfloat16, CPU)


@pytest.mark.parametrize("phase", [Phase.MASKED, Phase.BIASED])
@pytest.mark.parametrize("fault", ["blind to masks", "short of a tile", "none"])
def test_interpreted_a_mask_that_is_read_wrongly_fails_the_check(
    phase: Phase, fault: str, interpreted: Interpreted
) -> None:
    reason = interpreted(outcome_of_a_wrong_one, phase, fault)
    assert reason is None if fault == "none" else "off by" in reason
