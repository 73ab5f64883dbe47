"""The check before a backend serves: it passes what is right, and sees each way of being wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from inference_pio.kernels.attention import KERNELS
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.attention_check import PROBLEMS, why_it_fails
from inference_pio.kernels.attention_choice import FUSED, WHOLE, Phase

CPU = torch.device("cpu")
SHAPE = HeadShape(6, 2, 32, 32)
RIGHT = KERNELS[FUSED]


@pytest.fixture(autouse=True)
def _found_out_anew() -> Iterator[None]:
    why_it_fails.cache_clear()
    yield
    why_it_fails.cache_clear()


def _without(name: str, value: Any) -> Any:
    def kernel(query: Any, key: Any, seen: Any, mask: Any = None, **how: Any) -> Any:
        given = {"mask": mask, **how}
        return RIGHT(query, key, seen, **{**given, name: value(given[name])})

    return kernel


WRONG: dict[str, tuple[Any, set[Phase]]] = {
    "ten percent off": (lambda *given, **how: RIGHT(*given, **how) * 1.1, set(Phase)),
    "not a number": (lambda *given, **how: RIGHT(*given, **how) * float("nan"), set(Phase)),
    "blind to masks": (
        _without("mask", lambda mask: None),
        set(Phase) - {*WHOLE, Phase.DECODE, Phase.VISION},
    ),
    "blind to the future": (_without("causal", lambda causal: False), set(WHOLE)),
    "an additive mask misread": (
        _without("mask", lambda mask: mask if mask is None or mask.dtype == torch.bool else mask * 0.5),
        {Phase.BIASED},
    ),
    "key heads in another order": (
        lambda query, key, value, *rest, **how: RIGHT(query, key.flip(1), value, *rest, **how),
        set(Phase),
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_kernel_is_told_in_every_phase_that_it_harms(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, harmed = WRONG[fault]
    monkeypatch.setitem(KERNELS, FUSED, kernel)
    found = {phase for phase in Phase if why_it_fails(FUSED, phase, SHAPE, torch.float32, CPU) is not None}
    assert found == harmed


def test_a_kernel_that_raises_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*given: Any, **how: Any) -> None:
        raise RuntimeError("no plan\nwith a long story")

    monkeypatch.setitem(KERNELS, FUSED, kernel)
    reason = why_it_fails(FUSED, Phase.PREFILL, SHAPE, torch.float32, CPU)
    assert reason == "it does not run here (no plan)"


def test_memory_that_runs_out_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*given: Any, **how: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setitem(KERNELS, FUSED, kernel)
    with pytest.raises(torch.OutOfMemoryError):
        why_it_fails(FUSED, Phase.PREFILL, SHAPE, torch.float32, CPU)


def test_lengths_are_odd_rows_are_padded_and_every_phase_is_tried() -> None:
    assert set(PROBLEMS) == set(Phase)
    assert all(one.queries % 2 for problems in PROBLEMS.values() for one in problems)
    grown = PROBLEMS[Phase.PADDED_DECODE][0].times(7)
    assert (grown.queries, grown.keys, grown.starts) == (1, 469, (0, 245))


def test_all_phases_of_a_large_model_take_less_than_a_second_of_one_core() -> None:
    started = time.process_time()
    for phase in Phase:
        assert why_it_fails(FUSED, phase, HeadShape(32, 8, 128, 128), torch.float32, CPU) is None
    assert time.process_time() - started < 1
