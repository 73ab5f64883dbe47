"""Chosen experts are copied to slots of the device, the last ones stay, and the same bits come out.

The CPU stands for the device here; what needs a GPU is marked.
"""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import psutil
import pytest
import torch

from inference_pio.errors import NoEffect, RefusedOnOptimized, StreamError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.streaming.device_slot import Device
from inference_pio.streaming.hooks import WHY, stream_of
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.quality import reference_models
from tests.streaming.in_slots import NAME, cpu_beside_the_host, put, slots_of
from tests.streaming.mixture import mixture

__all__ = ["cpu_beside_the_host"]
on_cpu = pytest.mark.usefixtures("cpu_beside_the_host")
TRAINED = ("qwen3_moe", "glm4_moe", "glm4_moe_lite")
OFTEN = (("qwen3_moe", None), ("glm4_moe", "int4"), ("glm4_moe_lite", "int8"))
"""In `make test`; all of them in `make verify`."""
EXPERT_BYTES = (96 * 64 + 64 * 48) * 4
TOKEN = torch.tensor([[5]])
PROMPT = torch.arange(1, 100)[None]


def tokens_of(length: int, seed: int) -> torch.Tensor:
    return torch.randint(1, 200, (1, length), generator=torch.Generator().manual_seed(seed))


def written(model: Any, tokens: int = 8) -> torch.Tensor:
    prompt = tokens_of(24, 0).to(model.device)
    found: torch.Tensor = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return found


def logits(model: Any, tokens: torch.Tensor = TOKEN) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens.to(model.device)).logits
    return found


@on_cpu
@pytest.mark.parametrize(("name", "format"), [
    pytest.param(name, format, marks=[] if (name, format) in OFTEN else pytest.mark.slow)
    for name in TRAINED
    for format in (None, "int8", "int4")
])  # fmt: skip
def test_trained_models_write_the_same_bit_for_bit(name: str, format: str | None) -> None:
    model = reference_models.load(name)
    before, manager = fingerprint(model), ModularOptimizationManager()
    if format is not None:
        asked = {"format": format} | ({"group_size": 32} if format == "int4" else {})
        manager.apply_optimizations(model, ["tensor_compression"], parameters={"tensor_compression": asked})
    said, answers = written(model), logits(model, tokens_of(40, 1))
    put(model, "75%" if format is None else "92%")  # codes of experts weigh little beside the rest
    stream = slots_of(model)
    assert stream.units[0].tensors[0].dtype.is_floating_point == (format is None)
    assert torch.equal(written(model), said)
    assert torch.equal(logits(model, tokens_of(40, 1)), answers)
    assert stream.in_slots.hits > 0
    assert stream.in_slots.misses > 0
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []
    assert stream._space is None


@on_cpu
def test_what_was_chosen_is_copied_once_and_stays_while_it_is_used() -> None:
    model = mixture()
    manager = put(model)
    decision = manager.get_receipts(model)[0].decision
    assert decision["slots_per_layer"] >= 2
    assert decision["memory_bytes"] <= decision["budget_bytes"]
    logits(model)
    stream = slots_of(model)
    assert vars(stream.in_slots) == {"calls": 6, "hits": 0, "misses": 12, "copied_bytes": 12 * EXPERT_BYTES}
    logits(model)
    assert vars(stream.in_slots) == {"calls": 12, "hits": 12, "misses": 12, "copied_bytes": 12 * EXPERT_BYTES}
    counted = manager.get_optimization_status(model)["optimizations"][NAME]["counted"]["streaming"]
    assert counted["experts"] == vars(stream.in_slots)
    assert counted["slots_per_layer"] == decision["slots_per_layer"]


@on_cpu
def test_a_prompt_has_all_it_chose_and_pushes_nothing_out() -> None:
    model = mixture()
    expected = logits(model, PROMPT)
    put(model)
    stream = slots_of(model)
    logits(model)
    assert torch.equal(logits(model, PROMPT), expected)
    assert stream.whole.calls == 6
    assert stream.whole.hits == 12
    assert all(kept.free == 0 for kept in stream._kept)  # empty slots took what the prompt chose
    logits(model)
    assert stream.in_slots.hits == 12
    assert torch.equal(logits(model, PROMPT), expected)


@on_cpu
def test_rows_of_one_layer_that_come_in_pieces_are_served_by_one_copy() -> None:
    whole, pieces = mixture(), mixture()
    put(whole)
    logits(whole, PROMPT)
    manager = ModularOptimizationManager()
    asked = {"activation_offloading": {"mlp_chunk_tokens": 25}}
    manager.apply_optimizations(pieces, ["activation_offloading"], parameters=asked)
    expected = logits(pieces, PROMPT)
    put(pieces)
    assert torch.equal(logits(pieces, PROMPT), expected)
    assert slots_of(pieces).whole.calls == 4 * slots_of(whole).whole.calls
    assert slots_of(pieces).whole.copied_bytes == slots_of(whole).whole.copied_bytes


@on_cpu
def test_memory_is_what_was_planned() -> None:
    model = mixture(layers=8, experts=32)
    manager = put(model, "50%")
    receipt, stream = manager.get_receipts(model)[0], slots_of(model)
    stand_ins = sum(len(unit.tensors) for unit in stream.units) * 4
    assert tensor_bytes(model) == receipt.weight_bytes_after == receipt.decision["memory_bytes"] + stand_ins
    room = stream.take_room().slots[0][0].shown.untyped_storage().nbytes()
    assert stream.nbytes <= room <= stream.nbytes * 1.03


@on_cpu
@pytest.mark.parametrize(("budget", "host_budget", "more", "why"), [
    ("70%", "20%", {}, "must wait on the host"),
    ("70%", "100%", {"expert_slots": False}, "expert_slots=false was asked"),
    ("25%", "100%", {}, "one slot a layer and room for one layer's experts"),
])  # fmt: skip
def test_where_experts_cannot_come_one_by_one_the_plan_says_why(
    budget: str, host_budget: str, more: dict[str, bool], why: str
) -> None:
    manager = ModularOptimizationManager()
    parameters = {"gpu_budget": budget, "host_budget": host_budget, **more}
    plan = manager.plan(mixture(layers=8), [manager.wanted(NAME, parameters, order=True, source="a test")])
    assert why in plan.steps[0].decision["experts_whole"]
    assert {site.role for site in plan.steps[0].acting} == {"decoder_layer"}


@on_cpu
def test_all_that_has_room_stays() -> None:
    with pytest.raises(NoEffect, match="have room in the budget"):
        put(mixture(), "100%")


@on_cpu
def test_a_copy_that_fails_is_told_and_the_model_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture()
    before, expected, prompted = fingerprint(model), logits(model), logits(model, PROMPT)
    manager = put(model)
    real, good = Device.copy, [0]

    def broken(self: Device, pairs: Any) -> None:
        good[0] -= 1
        real(self, pairs if good[0] >= 0 else pairs[:1])
        if good[0] < 0:
            raise torch.OutOfMemoryError("the device has gone")

    for tokens, copies in ((PROMPT, 2), (TOKEN, 0), (PROMPT, 4)):  # on the way into slots, into slots, past a layer
        with monkeypatch.context() as patch:
            patch.setattr(Device, "copy", broken)
            good[0] = copies
            with pytest.raises(StreamError, match=r"experts of model\.layers\.\d.* could not be copied to cpu"):
                logits(model, tokens)
        assert torch.equal(logits(model), expected)
        assert torch.equal(logits(model, PROMPT), prompted)
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


@on_cpu
def test_ordinary_calls_see_true_values() -> None:
    model = mixture()
    expected, prompted = logits(model), logits(model, PROMPT)
    put(model)
    true = mixture().state_dict()
    found = model.state_dict()
    assert all(torch.equal(one, true[name]) for name, one in found.items())
    for name, one in found.items():
        if ".experts." in name:
            one.zero_()  # a copy, and the caller's
    twin = copy.deepcopy(model)
    assert slots_of(twin)._space is None  # a copy that never computes takes no slots
    assert torch.equal(logits(twin), expected)
    assert torch.equal(logits(model, PROMPT), prompted)
    model.train()
    with pytest.raises(RefusedOnOptimized, match="cannot be trained"):
        model(TOKEN)


@on_cpu
def test_recorded_steps_step_aside() -> None:
    model = mixture()
    said = tiny.generate(model, "qwen3_moe")
    manager = ModularOptimizationManager()
    parameters: dict[str, Any] = {
        NAME: {"gpu_budget": "60%"},
        "kernel_fusion": {"level": "graph"},
    }
    manager.apply_optimizations(model, [NAME, "kernel_fusion"], parameters=parameters)
    assert torch.equal(tiny.generate(model, "qwen3_moe"), said)
    status = manager.get_optimization_status(model)["optimizations"]["kernel_fusion"]
    assert status["counted"]["decoding"]["left_to_the_library"] == {WHY: 1}


@on_cpu
def test_threads_share_the_slots() -> None:
    model = mixture()
    prompts = [torch.arange(first, first + 3)[None] for first in range(1, 5)]
    expected = [logits(model, prompt) for prompt in prompts]
    put(model, "60%")
    wrong: list[int] = []

    def run(number: int) -> None:
        for _ in range(8):
            wrong.extend([number] * (not torch.equal(logits(model, prompts[number]), expected[number])))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


@on_cpu
@pytest.mark.parametrize("cycles", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_cycles_leave_no_thread_file_or_memory(cycles: int) -> None:
    model = mixture(layers=2)
    process = psutil.Process()
    put(model).remove_optimizations(model)
    gc.collect()  # what earlier tests left
    before, threads, files = fingerprint(model), threading.active_count(), process.num_fds()
    for _ in range(cycles):
        manager = put(model)
        logits(model)
        manager.remove_optimizations(model)
    assert (threading.active_count(), process.num_fds()) == (threads, files)
    assert stream_of(model) is None
    assert before.differences(fingerprint(model)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("format", [None, "int8", "int4"])
def test_on_a_gpu_the_same_bits_come_out(name: str, format: str | None) -> None:
    model = reference_models.load(name).to("cuda")
    before, manager = fingerprint(model), ModularOptimizationManager()
    if format is not None:
        asked = {"format": format} | ({"group_size": 32} if format == "int4" else {})
        manager.apply_optimizations(model, ["tensor_compression"], parameters={"tensor_compression": asked})
    said, answers = written(model, 32), logits(model, tokens_of(40, 1))
    put(model, "75%" if format is None else "92%")
    for _ in range(2):
        assert torch.equal(written(model, 32), said)
        assert torch.equal(logits(model, tokens_of(40, 1)), answers)
    twin = copy.deepcopy(model)
    assert torch.equal(written(twin, 32), said)
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(written(twin, 32), said)


@pytest.mark.gpu
def test_streams_of_two_threads_keep_order_by_events() -> None:
    model = mixture(dtype=torch.bfloat16).to("cuda")
    expected = [logits(model, torch.tensor([[number]])) for number in range(1, 5)]
    put(model, "60%")
    wrong: list[int] = []

    def run(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(30):
                found = logits(model, torch.tensor([[number + 1]]))
                wrong.extend([number] * (not torch.equal(found, expected[number])))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


@on_cpu
@pytest.mark.slow
@pytest.mark.parametrize(("budget", "slots"), [("90%", 8), ("80%", 6), ("70%", 4)])
def test_a_trained_model_finds_more_in_its_slots_than_chance_would(budget: str, slots: int) -> None:
    model = reference_models.load("qwen3_moe")
    put(model, budget)
    prompt = reference_models.draw(0, 1, 16)
    model.generate(prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False)
    told = slots_of(model).to_json()
    steps, chosen = told["experts"], told["experts"]["hits"] + told["experts"]["misses"]
    found = steps["hits"] / chosen
    print(f"{budget}: {told['slots_per_layer']} slots, {found:.0%}, {steps['copied_bytes'] / 63e6:.2f} MB a step")
    assert told["slots_per_layer"] == slots
    assert found > slots / 16
