"""Steps run one after another here, and as one recorded graph on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.decoding.runner import EagerRunner, GraphRunner, choose_runner, record


def test_steps_are_called_each_time() -> None:
    count = torch.zeros(1)

    def step() -> None:
        count.add_(1)

    runner = record(step, [count], torch.device("cpu"))
    assert isinstance(runner, EagerRunner)
    assert count.item() == 0
    runner.run()
    runner.run()
    assert count.item() == 2


def test_a_device_has_its_kind_of_runner() -> None:
    assert choose_runner(torch.device("cpu")) == "eager"
    assert choose_runner(torch.device("cuda", 0)) == "graph"


@pytest.mark.gpu
def test_recording_leaves_no_trace_and_replays_every_step() -> None:
    device = torch.device("cuda")
    count, drawn = torch.zeros(1, device=device), torch.zeros(4, device=device)

    def steps() -> None:
        for _ in range(3):
            count.add_(1)
        drawn.copy_(torch.empty_like(drawn).exponential_(1))

    torch.manual_seed(3)
    expected = torch.empty_like(drawn).exponential_(1)
    torch.manual_seed(3)
    runner = record(steps, [count, drawn], device)
    assert isinstance(runner, GraphRunner)
    assert count.item() == 0
    assert drawn.sum().item() == 0
    runner.run()
    assert count.item() == 3
    assert torch.equal(drawn, expected)
    first = drawn.clone()
    runner.run()
    assert count.item() == 6
    assert not torch.equal(drawn, first)


@pytest.mark.gpu
def test_what_only_the_steps_hold_stays_alive() -> None:
    device = torch.device("cuda")
    out = torch.zeros(4, device=device)

    def made() -> Any:
        held = torch.full((4,), 7.0, device=device)
        return record(lambda: out.copy_(held), [out], device)

    runner = made()
    others = [torch.zeros(4, device=device) for _ in range(64)]  # what would lie where `held` lay
    runner.run()
    assert out.tolist() == [7.0] * 4
    assert len(others) == 64


@pytest.mark.gpu
@pytest.mark.skipif("torch.cuda.device_count() < 2")
def test_steps_of_another_gpu_than_the_current_one_are_recorded() -> None:
    device = torch.device("cuda", 1)
    count = torch.zeros(1, device=device)
    runner = record(lambda: count.add_(1) and None, [count], device)
    runner.run()
    assert count.item() == 1
    assert torch.cuda.current_device() == 0
