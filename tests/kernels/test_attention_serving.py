"""What serves which phase: the best that lacks nothing and passes its check, in order, with reasons for the others."""

from __future__ import annotations

import json

import pytest
import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels import attention_serving
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.attention_choice import WHOLE, Phase
from inference_pio.kernels.attention_serving import Serving, choose_serving, note_of_roles, notes_of

SHAPE = HeadShape(32, 8, 128, 128)
CPU = torch.device("cpu")
PHASES = tuple(Phase)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, Phase], str]:
    """The choice as an H100 makes it, with checks that fail as told."""
    faults: dict[tuple[str, Phase], str] = {}
    monkeypatch.setattr(attention_serving, "capability_of", lambda device: 90)
    monkeypatch.setattr(
        attention_serving, "lacks", lambda backend, phase, *_: "it takes no mask" if _no_mask(backend, phase) else None
    )
    monkeypatch.setattr(attention_serving, "why_it_fails", lambda backend, phase, *_: faults.get((backend, phase)))
    return faults


def _no_mask(backend: str, phase: Phase) -> bool:
    return backend == "flash" and phase not in (*WHOLE, Phase.CHUNK, Phase.DECODE, Phase.VISION)


def test_the_table_decides_by_phase_and_length(
    hopper: dict[tuple[str, Phase], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, passed = choose_serving(SHAPE, torch.bfloat16, CPU, PHASES, check=True)
    assert passed == []
    assert serving.backend(Phase.PREFILL, 8) == "cudnn"
    monkeypatch.setattr(attention_serving, "why_no_warp_roles", lambda: "it is too old")
    plain, _ = choose_serving(SHAPE, torch.bfloat16, CPU, PHASES)
    assert note_of_roles(SHAPE, CPU) == [
        "triton is our older kernel here, and slower at causal prompts: of the other, it is too old."
    ]
    assert note_of_roles(HeadShape(32, 8, 256, 256), CPU) == []
    monkeypatch.setattr(attention_serving, "why_no_warp_roles", lambda: None)
    assert note_of_roles(SHAPE, CPU) == []
    roles, _ = choose_serving(SHAPE, torch.bfloat16, CPU, PHASES)
    assert [each.backend(Phase.PREFILL, 4096) for each in (plain, roles)] == ["cudnn", "triton"]
    assert roles.said(PHASES).startswith(
        "prefill cudnn, triton from 4096 keys; captured prefill cudnn, triton from 512 keys; padded prefill triton; "
    )
    assert serving.backend(Phase.PADDED_DECODE, 8) == "triton"
    assert "captured" not in plain.said(PHASES)
    del plain.steps[Phase.CAPTURED_PREFILL]  # as in what was written down before there was such a phase
    assert plain.backend(Phase.CAPTURED_PREFILL, 8) == plain.backend(Phase.PREFILL, 8) == "cudnn"
    assert [serving.backend(Phase.DECODE, keys) for keys in (16383, 16384)] == ["flash", "triton"]
    assert "decode flash, triton from 16384 keys; padded decode triton" in serving.said(PHASES)
    assert Serving.from_json(json.loads(json.dumps(serving.to_json()))) == serving


def test_one_that_fails_its_check_is_dropped_with_the_reason_and_the_next_serves(
    hopper: dict[tuple[str, Phase], str],
) -> None:
    hopper["cudnn", Phase.PREFILL] = "it is off by 3 from the float32 reference with 4 key heads"
    serving, passed = choose_serving(SHAPE, torch.bfloat16, CPU, PHASES, check=True)
    assert serving.backend(Phase.PREFILL, 8) == "flash"
    assert [(one.backend, one.phase, one.checked) for one in passed] == [("cudnn", phase, True) for phase in WHOLE]
    assert notes_of(passed) == [
        "cudnn is passed over at prefill, captured prefill: it is off by 3 from the float32 reference with 4 key heads."
    ]
    predicted, nothing = choose_serving(SHAPE, torch.bfloat16, CPU, PHASES)
    assert (predicted.backend(Phase.PREFILL, 8), nothing) == ("cudnn", [])


def test_a_kernel_that_reads_masks_wrongly_is_dropped_at_the_phase_of_these_masks(
    hopper: dict[tuple[str, Phase], str],
) -> None:
    hopper["triton", Phase.BIASED] = "it is off by 1 from the float32 reference with 8 key heads"
    serving, passed = choose_serving(SHAPE, torch.bfloat16, CPU, PHASES, check=True)
    assert serving.steps[Phase.MASKED] == ((0, "triton"),)
    assert serving.steps[Phase.BIASED] == ((0, "efficient"), (2048, "cudnn"))
    assert [(one.backend, one.phase, one.checked) for one in passed] == [("triton", Phase.BIASED, True)]


def test_what_stands_first_serves_where_it_can_and_the_table_elsewhere(hopper: dict[tuple[str, Phase], str]) -> None:
    serving, passed = choose_serving(SHAPE, torch.bfloat16, CPU, PHASES, first="flash", check=True)
    assert serving.backend(Phase.PREFILL, 8) == "flash"
    assert serving.steps[Phase.DECODE] == ((0, "flash"),)
    assert serving.backend(Phase.PADDED_PREFILL, 8) == "triton"
    assert {one.phase for one in passed} == {phase for phase in Phase if _no_mask("flash", phase)}
    assert not any(one.checked for one in passed)


def test_where_nothing_serves_the_reasons_are_told(hopper: dict[tuple[str, Phase], str]) -> None:
    for backend in ("flash", "cudnn", "efficient", "fused"):
        hopper[backend, Phase.VISION] = f"{backend} is broken"
    with pytest.raises(InvalidSetting, match=r"no attention backend serves vision.*fused: fused is broken"):
        choose_serving(SHAPE, torch.bfloat16, CPU, PHASES, check=True)


def test_on_a_cpu_one_name_says_all() -> None:
    serving, passed = choose_serving(SHAPE, torch.float32, CPU, PHASES, check=True)
    assert passed == []
    assert serving.said(PHASES) == "fused"
    assert serving.backends == {"fused"}
