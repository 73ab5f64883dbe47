"""The table of backends: every device, phase and width finds a row, and what is measured stands as measured."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest

from inference_pio.kernels.attention_backends import BACKENDS
from inference_pio.kernels.attention_choice import (
    CUDNN,
    DECODING,
    EFFICIENT,
    FLASH,
    FUSED,
    TABLE,
    TRITON,
    Phase,
    candidates,
)


@pytest.mark.parametrize("capability", [75, 80, 89, 90, 100, 120])
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("width", [24, 64, 128, 256])
def test_every_call_has_a_backend_before_what_torch_chooses(capability: int, phase: Phase, width: int) -> None:
    steps = candidates(capability, phase, width)
    assert steps[0][0] == 0
    assert [keys for keys, _ in steps] == sorted({keys for keys, _ in steps})
    for _, backends in steps:
        assert len(backends) > 1
        assert backends[-1] == FUSED
        assert set(backends) <= set(BACKENDS)


@pytest.mark.parametrize("phase", Phase)
def test_without_an_nvidia_gpu_torch_chooses(phase: Phase) -> None:
    assert candidates(0, phase, 128) == ((0, (FUSED,)),)


def test_long_prefill_is_ours_on_hopper_where_warps_take_roles_short_cudnns_and_flashs_elsewhere() -> None:
    (none, short), (long, ours) = candidates(90, Phase.PREFILL, 128)
    assert (none, short[:2]) == (0, (CUDNN, FLASH))
    assert (long, ours[:2]) == (4096, (TRITON, CUDNN))
    assert candidates(90, Phase.PREFILL, 128, by_roles=False) == ((0, short),)
    assert [keys for keys, _ in candidates(90, Phase.CAPTURED_PREFILL, 128)] == [0, 512]
    assert candidates(90, Phase.CAPTURED_PREFILL, 128)[1][1] == ours
    for width in (64, 256):
        assert [backends[0] for _, backends in candidates(90, Phase.PREFILL, width)] == [CUDNN]
    for capability in (80, 100):
        assert [backends[0] for _, backends in candidates(capability, Phase.PREFILL, 128)] == [FLASH]
        assert all(CUDNN not in backends for _, backends in candidates(capability, Phase.PREFILL, 128))


def test_no_decode_goes_to_cudnn_which_builds_a_plan_for_each_length() -> None:
    for phase in DECODING:
        for capability in (80, 90, 100):
            assert all(CUDNN not in backends for _, backends in candidates(capability, phase, 128))
    assert candidates(90, Phase.DECODE, 128)[-1][1][0] == TRITON


def test_masks_of_many_queries_are_the_triton_kernels_and_of_one_query_no_kernel_of_ours() -> None:
    for capability in (80, 90, 100):
        for phase in (Phase.MASKED, Phase.BIASED):
            assert [backends[0] for _, backends in candidates(capability, phase, 128)] == [TRITON] * (
                2 if capability == 90 else 1
            )
        assert candidates(capability, Phase.MASKED_DECODE, 128) == ((0, (EFFICIENT, FUSED)),)


def test_longer_calls_stand_before_shorter_ones_in_the_table() -> None:
    for place, row in enumerate(TABLE):
        for later in TABLE[place + 1 :]:
            overlap = set(row.phases) & set(later.phases)
            if overlap and row.capability == later.capability and row.widths == later.widths:
                assert row.keys > later.keys, (row, later)


def test_the_page_shows_what_the_table_holds() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
    page = page.partition("<!-- checked against the table")[2].partition("\n\nWithout")[0]
    shown = dict(re.findall(r"^\| ([a-z ]+) \| [^|]+ \| (.+) \|$", page, flags=re.MULTILINE))
    shown.pop("phase", None)
    assert shown == {phase.value: f"{_in_words(90, phase)} | {_in_words(80, phase)}" for phase in Phase}


def _in_words(capability: int, phase: Phase) -> str:
    steps = [(keys, names[0]) for keys, names in candidates(capability, phase, 128)]
    changes = [next(same) for _, same in groupby(steps, key=lambda step: step[1])]
    return "; ".join(f"from {keys} keys {name}" if keys else name for keys, name in changes)
