"""On a GPU the same bits come out of every tier, and the host waits for no copy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from inference_pio.manager import ModularOptimizationManager
from inference_pio.streaming.device_slot import Device
from inference_pio.streaming.hooks import stream_of
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

NAME = "disk_offloading"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "glm4_moe_lite"])
@pytest.mark.parametrize("host_budget", ["100%", "40%", 1])
def test_every_tier_gives_the_same_bits_and_comes_off(name: str, host_budget: int | str) -> None:
    model: Any = tiny.build(name).to("cuda")
    before, logits = fingerprint(model), tiny.logits(model, name)
    manager = ModularOptimizationManager()
    budgets = {"gpu_budget": "80%", "host_budget": host_budget}
    manager.apply_optimizations(model, [NAME], parameters={NAME: budgets})
    decision = manager.get_receipts(model)[0].decision
    assert decision["host"] or host_budget != "100%"
    assert not decision["host"] or host_budget != 1
    assert decision["memory_bytes"] <= decision["budget_bytes"]
    for _ in range(5):
        assert torch.equal(tiny.logits(model, name), logits)
    twin = copy.deepcopy(model)
    assert torch.equal(tiny.logits(twin, name), logits)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(
        model.state_dict().values(), tiny.build(name).state_dict().values(), strict=True
    ))  # fmt: skip
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(twin, name), logits)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_the_host_waits_for_no_copy_from_host_memory() -> None:
    model: Any = tiny.build("llama").to("cuda")
    given = tiny.inputs("llama", model)
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, [NAME], parameters={NAME: {"gpu_budget": "80%", "host_budget": "100%"}})
    with torch.no_grad():
        expected = model(**given).logits
        try:
            torch.cuda.set_sync_debug_mode("error")
            stream = stream_of(model)
            assert stream is not None
            for number in range(3):
                stream.enter(number)
                stream.leave(number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(model(**given).logits, expected)


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_copies_of_single_tensors_are_there_for_what_follows(kind: str) -> None:
    device = Device(torch.device(kind), {})
    sources = [torch.arange(number, number + 5) for number in range(3)]
    targets = [torch.zeros(5, dtype=torch.int64, device=kind) for _ in sources]
    device.computed()
    device.copy(list(zip(targets, sources, strict=True)))
    device.copy([])
    assert torch.equal(sum(targets).cpu(), sum(sources))  # type: ignore[union-attr,arg-type]
    device.drain()
