"""Experts come one by one when they are chosen, the last ones stay, and the same bits come out."""

from __future__ import annotations

import copy
import gc
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

import inference_pio
from inference_pio.errors import RefusedOnOptimized, StreamError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.streaming.expert_stream import ExpertStream, memory_of, most_kept
from inference_pio.streaming.hooks import WHY, stream_of
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.streaming.mixture import mixture

NAME = "disk_offloading"


def apply(model: Any, budget: str = "50%", *others: str) -> ModularOptimizationManager:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, [NAME, *others], parameters={NAME: {"host_budget": budget, "threads": 2}})
    return manager


def counted(manager: ModularOptimizationManager, model: Any) -> dict[str, Any]:
    found: dict[str, Any] = manager.get_optimization_status(model)["optimizations"][NAME]["counted"]["streaming"]
    return found


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("budget", ["40%", "70%"])
def test_the_same_bits_come_out_of_any_of_the_librarys_ways(implementation: str, budget: str) -> None:
    model = mixture()
    model.set_experts_implementation(implementation)
    before, logits = fingerprint(model), tiny.logits(model, "qwen3_moe")
    said = tiny.generate(model, "qwen3_moe", new_tokens=12)
    manager = apply(model, budget)
    receipt = manager.get_receipts(model)[0]
    assert len(receipt.acted) == 6
    assert receipt.decision["memory_bytes"] <= receipt.decision["budget_bytes"]
    for _ in range(2):
        assert torch.equal(tiny.logits(model, "qwen3_moe"), logits)
        assert torch.equal(tiny.generate(model, "qwen3_moe", new_tokens=12), said)
    assert all(one.isnan().all() for one in model.model.layers[3].mlp.experts.parameters())
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_what_was_chosen_is_read_once_and_stays_while_it_is_used() -> None:
    model = mixture()
    manager = apply(model, "70%")
    kept = manager.get_receipts(model)[0].decision["kept_per_layer"]
    token = torch.tensor([[5]])
    with torch.no_grad():
        model(token)
        first = counted(manager, model)["experts"]
        model(token)
        second = counted(manager, model)["experts"]
    expert_bytes = (96 * 64 + 64 * 48) * 4
    assert kept >= 2
    assert (first["calls"], first["hits"], first["misses"]) == (6, 0, 12)
    assert first["read_bytes"] == 12 * expert_bytes
    assert (second["hits"], second["misses"], second["read_bytes"]) == (12, 12, first["read_bytes"])


def test_a_prompt_that_chooses_more_than_stay_does_not_push_out_what_stayed() -> None:
    model = mixture()
    manager = apply(model, "40%")
    assert manager.get_receipts(model)[0].decision["kept_per_layer"] >= 2
    token, prompt = torch.tensor([[5]]), torch.arange(1, 100)[None]
    with torch.no_grad():
        model(token)
        model(prompt)
        before = counted(manager, model)["experts"]
        model(token)
        after = counted(manager, model)["experts"]
    assert after["hits"] - before["hits"] == 12
    assert after["misses"] == before["misses"]


def test_memory_is_what_was_planned() -> None:
    model = mixture(layers=8, experts=32)
    manager = apply(model, "50%")
    receipt = manager.get_receipts(model)[0]
    stream = stream_of(model)
    assert isinstance(stream, ExpertStream)
    stand_ins = sum(len(unit.tensors) for unit in stream.units) * 4
    assert tensor_bytes(model) == receipt.weight_bytes_after == receipt.decision["memory_bytes"] + stand_ins
    with torch.no_grad():
        model(torch.arange(1, 100)[None])
    assert all(len(cache._held) <= cache.capacity for cache in stream._caches)


def test_the_most_that_fit_stay_and_none_where_none_does() -> None:
    assert [most_kept([10, 10], [8, 8], budget) for budget in (89, 90, 159, 160)] == [0, 1, 7, 7]
    assert memory_of([10, 20], [8, 4], 3) == 30 + 60 + 50


def test_the_users_checkpoint_is_read_expert_by_expert(tmp_path: Path) -> None:
    mixture().save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    logits = tiny.logits(model, "qwen3_moe")
    manager = apply(model)
    assert manager.get_receipts(model)[0].originals == "the model's own files"
    assert torch.equal(tiny.logits(model, "qwen3_moe"), logits)


@pytest.mark.parametrize("other", ["tensor_compression", "kernel_fusion", "flash_attention"])
def test_it_composes_with_others_in_any_order_of_undo(other: str) -> None:
    model = mixture()
    before = fingerprint(model)
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, [other])
    logits = tiny.logits(model, "qwen3_moe")
    apply(model, "60%")
    assert torch.equal(tiny.logits(model, "qwen3_moe"), logits)
    assert isinstance(stream_of(model), ExpertStream)
    manager.remove_optimizations(model, [other])
    assert isinstance(stream_of(model), ExpertStream)
    tiny.logits(model, "qwen3_moe")
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_recorded_steps_step_aside() -> None:
    model = mixture()
    said = tiny.generate(model, "qwen3_moe")
    manager = ModularOptimizationManager()
    parameters = {NAME: {"host_budget": "50%"}, "kernel_fusion": {"level": "graph"}}
    manager.apply_optimizations(model, [NAME, "kernel_fusion"], parameters=parameters)
    assert torch.equal(tiny.generate(model, "qwen3_moe"), said)
    status = manager.get_optimization_status(model)["optimizations"]["kernel_fusion"]
    assert status["counted"]["decoding"]["left_to_the_library"] == {WHY: 1}


def test_ordinary_calls_see_true_values(tmp_path: Path) -> None:
    model = mixture()
    logits = tiny.logits(model, "qwen3_moe")
    apply(model)
    true = mixture().state_dict()
    assert all(torch.equal(one, true[name]) for name, one in model.state_dict().items())
    twin = copy.deepcopy(model)
    assert torch.equal(tiny.logits(twin, "qwen3_moe"), logits)
    loaded = inference_pio.load(inference_pio.save(model, tmp_path / "saved"))
    assert torch.equal(tiny.logits(loaded, "qwen3_moe"), logits)
    model.train()
    with pytest.raises(RefusedOnOptimized, match="cannot be trained"):
        model(torch.tensor([[1]]))


def test_threads_share_what_is_kept() -> None:
    model = mixture()
    prompts = [torch.arange(first, first + 20)[None] for first in range(1, 5)]
    with torch.no_grad():
        expected = [model(prompt).logits for prompt in prompts]
    apply(model, "40%")
    wrong: list[int] = []

    def run(number: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                wrong.extend([number] * (not torch.equal(model(prompts[number]).logits, expected[number])))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_an_expert_that_cannot_be_read_is_told_and_the_model_goes_on() -> None:
    model = mixture()
    logits = tiny.logits(model, "qwen3_moe")
    manager = apply(model)
    stream = stream_of(model)
    assert stream is not None
    (file,) = {piece.file for piece in stream._pieces[2]}
    content = file.read_bytes()
    os.truncate(file, 100)
    with pytest.raises(StreamError, match="cut short"):
        tiny.logits(model, "qwen3_moe")
    file.write_bytes(content)
    assert torch.equal(tiny.logits(model, "qwen3_moe"), logits)
    manager.remove_optimizations(model)


def test_cycles_leave_no_thread_file_or_memory() -> None:
    model = mixture()
    process = psutil.Process()
    apply(model).remove_optimizations(model)
    gc.collect()  # what earlier tests left
    threads, files = threading.active_count(), process.num_fds()
    for _ in range(10):
        manager = apply(model)
        tiny.logits(model, "qwen3_moe")
        manager.remove_optimizations(model)
    assert (threading.active_count(), process.num_fds()) == (threads, files)
