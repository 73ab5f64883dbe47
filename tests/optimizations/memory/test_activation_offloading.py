"""activation_offloading: pieces planned from one budget, the same answers, each skip with its reason, exact undo."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from inference_pio.decoding import hosted_generate
from inference_pio.errors import InvalidSetting, NoEffect, PlanError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure.allocations import peak_allocated
from inference_pio.measure.memory import weight_bytes
from inference_pio.optimizations.memory.activation_offloading import (
    MASKED,
    ActivationOffloadingParameters,
)
from inference_pio.plan.target import Wanted
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.cache.walks import prompt
from tests.sweep import Case

NAME = "activation_offloading"
LONG: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
    "num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 65536,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 192}


def apply(model: Any, *others: str, **parameters: Any) -> ModularOptimizationManager:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, [*others, NAME], parameters={NAME: parameters})
    return manager


def counted(manager: ModularOptimizationManager, model: Any) -> dict[str, Any]:
    (applied,) = [one for one in manager.get_optimization_status(model)["applied_optimizations"] if one["name"] == NAME]
    found: dict[str, Any] = applied["counted"]
    return found


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_answers_are_the_same_and_what_was_cut_is_counted(name: str) -> None:
    case = Case(name)
    with tiny._rope_deltas_kept(case.model):
        said = tiny.generate(case.model, name)
    case.apply(NAME)
    torch.testing.assert_close(tiny.logits(case.model, name), case.logits, rtol=1e-4, atol=5e-6)
    with tiny._rope_deltas_kept(case.model):
        assert torch.equal(tiny.generate(case.model, name), said)
    told = counted(case.manager, case.model)
    assert told["decoder"]["calls"] >= 2
    assert told["mlp"]["pieces"] > told["mlp"]["calls"] > 0
    assert told["decoder"]["left_whole"] == told["mlp"]["left_whole"] == {}
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("config", [Qwen3Config(**LONG), Qwen3MoeConfig(**LONG, **EXPERTS)], ids=["dense", "moe"])
@torch.no_grad()
def test_a_long_forward_takes_at_most_a_quarter_of_the_memory(config: Any) -> None:
    tokens = 6144
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(1, 60, (1, tokens), generator=torch.Generator().manual_seed(0))
    cache = tokens * 2 * 32 * 4 * config.num_hidden_layers

    def rise() -> tuple[int, torch.Tensor]:
        with peak_allocated(torch.device("cpu")) as peak:
            logits = model(input_ids=ids, logits_to_keep=1).logits
        return peak.peak_bytes - peak.start_bytes - cache, logits

    whole, wanted = rise()
    manager = apply(model, "flash_attention", max_activation_bytes=whole // 8, text_tokens=tokens)
    pieces, logits = rise()
    assert pieces < 0.25 * whole
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    assert counted(manager, model)["decoder"]["calls"] == 1


@pytest.mark.parametrize(
    "parameters", [{"max_activation_bytes": "200KB"}, {"max_activation_bytes": 200_000}, {"max_memory_ratio": 1e-5}]
)
def test_a_budget_is_turned_into_sizes_that_keep_to_it(parameters: dict[str, Any]) -> None:
    model = tiny.build("qwen3")
    manager = apply(model, **parameters)
    decision = manager.get_receipts(model)[0].decision
    assert 0 < decision["layer_bytes"] <= decision["budget_bytes"] < decision["whole_bytes"]
    assert decision["layer_bytes"] > decision["budget_bytes"] / 4
    assert decision["prefill_chunk_size"] >= decision["mlp_chunk_tokens"] >= 16
    json.dumps(decision)


@pytest.mark.parametrize("together", [True, False])
def test_a_share_of_the_memory_counts_layers_that_stream_from_disk_by_their_slots(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("qwen3")
    weights = weight_bytes(model)
    room = weights - 1000  # all weights would not fit
    monkeypatch.setattr("inference_pio.optimizations.memory.activation_offloading.device_bytes", lambda device: room)
    with pytest.raises(PlanError, match="max_memory_ratio is a share of what the weights leave"):
        apply(model, max_memory_ratio=1.0)
    manager, disk = ModularOptimizationManager(), "disk_offloading"
    asked = {disk: {"host_budget": "60%", "threads": 1}, NAME: {"max_memory_ratio": 1.0, "text_tokens": 512}}
    for names in [[disk, NAME]] if together else [[disk], [NAME]]:
        manager.apply_optimizations(model, names, parameters={name: asked[name] for name in names})
    streamed, pieces = (receipt for receipt in manager.get_receipts(model))
    assert streamed.weight_bytes_after < weights
    assert pieces.decision["budget_bytes"] == room - streamed.weight_bytes_after


def test_a_budget_that_is_met_leaves_nothing_to_do_and_says_so_with_numbers() -> None:
    with pytest.raises(NoEffect, match=r"a text of 512 tokens needs 1\.\d+ MB at once, and 8.0 MB are allowed"):
        apply(tiny.build("qwen3"), max_activation_bytes="8MB")


def test_a_budget_that_is_too_small_is_refused_with_numbers_and_touches_nothing() -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    with pytest.raises(PlanError, match=r"the budget for activations is 1.0 kB, and a layer of this model needs"):
        apply(model, max_activation_bytes="1KB")
    assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_activation_bytes": "4 gigs"}, "is no size"),
        ({"max_activation_bytes": 0}, "at least one byte"),
        ({"max_memory_ratio": 1.5}, "max_memory_ratio"),
        ({"max_activation_bytes": "1GB", "max_memory_ratio": 0.5}, "two budgets for one thing"),
        ({"prefill_chunk_size": -1}, "prefill_chunk_size"),
    ],
)
def test_wrong_settings_are_told(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        ActivationOffloadingParameters(**parameters)


def test_zero_leaves_whole_and_a_wish_alone_is_served() -> None:
    model = tiny.build("qwen3")
    manager = apply(model, prefill_chunk_size=0, logits_chunk_tokens=0, mlp_chunk_tokens=4)
    receipt = manager.get_receipts(model)[0]
    assert {site.role for site in receipt.acted} == {"mlp"}
    reasons = {one["reason"] for one in receipt.to_json()["skipped"]}
    assert reasons == {"prefill_chunk_size=0 leaves it whole", "logits_chunk_tokens=0 leaves it whole"}
    with pytest.raises(NoEffect, match="leaves it whole"):
        apply(tiny.build("qwen3"), prefill_chunk_size=0, logits_chunk_tokens=0, mlp_chunk_tokens=0)


def test_a_forward_of_somebody_elses_is_left_alone() -> None:
    model: Any = tiny.build("qwen3")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: x
    manager = apply(model, mlp_chunk_tokens=4)
    skipped = manager.get_receipts(model)[0].to_json()["skipped"]
    assert skipped == [
        {"reason": "its forward is overridden by somebody else", "count": 1, "paths": ["model.layers.0.mlp"]}
    ]


def test_masks_of_the_librarys_attention_are_told_and_kernels_without_them_are_not() -> None:
    model = tiny.build("qwen3")
    assert MASKED in apply(model, prefill_chunk_size=8).get_receipts(model)[0].notes
    other = tiny.build("qwen3")
    manager = apply(other, "flash_attention", prefill_chunk_size=8)
    assert MASKED not in manager.get_receipts(other)[1].notes


@torch.no_grad()
def test_rows_share_a_piece() -> None:
    model: Any = tiny.build("qwen3")
    manager = apply(model, prefill_chunk_size=12)
    model(**prompt(3, 10))
    assert counted(manager, model)["decoder"] == {"calls": 1, "pieces": 3, "left_whole": {}}


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "glm4_moe_lite"])
@torch.no_grad()
def test_it_works_over_merged_and_compressed_weights(name: str) -> None:
    parameters = {"tensor_compression": {"format": "int8"}, "kernel_fusion": {"level": "merged"}}
    plain, cut = tiny.build(name, torch.float32), tiny.build(name, torch.float32)
    manager = ModularOptimizationManager()
    names = ["tensor_compression", "flash_attention", "kernel_fusion"]
    manager.apply_optimizations(plain, names, parameters=parameters)
    sizes = {NAME: {"prefill_chunk_size": 9, "mlp_chunk_tokens": 4}}
    manager.apply_optimizations(cut, [*names, NAME], parameters=parameters | sizes)
    given = prompt(2, 23, (0, 6))
    wanted, found = plain(**given).logits, cut(**given).logits
    error = (found[:, 6:] - wanted[:, 6:]).pow(2).mean() / wanted[:, 6:].pow(2).mean()
    assert error < 1e-4  # int8 layers compute in bfloat16, few rows by another kernel than many
    told = counted(manager, cut)
    assert told["decoder"]["pieces"] == 6
    assert told["mlp"]["left_whole"] == {}
    assert torch.equal(*(model.generate(**given, max_new_tokens=5, do_sample=False) for model in (plain, cut)))


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The placement acts on the CPU as it would for a model on a GPU."""
    monkeypatch.setattr(hosted_generate, "_why_not_from", lambda device: None)


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_keys_and_values_lie_on_the_host_and_prompts_come_in_pieces(name: str) -> None:
    case = Case(name)
    given = prompt(2, 21, (0, 4))
    with tiny._rope_deltas_kept(case.model):
        wanted = case.model.generate(**given, max_new_tokens=5, do_sample=False)  # type: ignore[operator]
    parameters = {NAME: {"prefill_chunk_size": 12, "kv_placement": "host", "resident_layers": 1, "layers_ahead": 1}}
    case.manager.apply_optimizations(case.model, [NAME], parameters=parameters)
    with tiny._rope_deltas_kept(case.model):
        assert torch.equal(case.model.generate(**given, max_new_tokens=5, do_sample=False), wanted)  # type: ignore[operator]
    told = counted(case.manager, case.model)
    held = told["kv_cache"].pop("held_bytes")
    assert told["kv_cache"] == {"placement": "host", "calls": 1, "left_to_the_library": {}}
    assert held > 0
    assert told["decoder"]["pieces"] == 4
    (receipt,) = case.manager.get_receipts(case.model)
    assert "it is one of the 1 layers that stay on the device (resident_layers)" in {
        skips["reason"] for skips in receipt.to_json()["skipped"]
    }
    assert any("buffers, in which layers come back 1 ahead" in note for note in receipt.notes)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_cache_in_a_format_keeps_its_place_and_the_plan_says_so() -> None:
    model: Any = tiny.build("qwen3")
    manager = ModularOptimizationManager()
    parameters = {NAME: {"kv_placement": "host"}, "tensor_compression": {"kv_cache": "int8", "targets": []}}
    plan = manager.plan(model, [Wanted(name, parameters[name], order=True) for name in parameters])
    reasons = {site.skip for site in plan.steps[1].sites if site.role == "kv_cache"}
    assert reasons == {"another optimization makes generate's caches, in a form that stays on the device"}


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_decoding_in_whole_steps_leaves_such_calls_to_the_library() -> None:
    model: Any = tiny.build("qwen3")
    given = prompt(1, 21)
    wanted = model.generate(**given, max_new_tokens=5, do_sample=False)
    manager = ModularOptimizationManager()
    parameters = {NAME: {"kv_placement": "host"}, "kernel_fusion": {"level": "graph"}}
    manager.apply_optimizations(model, ["kernel_fusion", NAME], parameters=parameters)
    assert torch.equal(model.generate(**given, max_new_tokens=5, do_sample=False), wanted)
    status = manager.get_optimization_status(model)
    (fused,) = [one for one in status["applied_optimizations"] if one["name"] == "kernel_fusion"]
    left = fused["counted"]["decoding"]["left_to_the_library"]
    assert left == {"its cache lies on the host, from which recorded steps do not read": 1}


def test_on_the_host_itself_a_placement_is_a_told_no_op() -> None:
    with pytest.raises(NoEffect, match="the model is on the host itself, and so is its cache"):
        apply(tiny.build("qwen3"), kv_placement="host", prefill_chunk_size=0, mlp_chunk_tokens=0, logits_chunk_tokens=0)


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_every_place_is_told_once(name: str) -> None:
    """The plan's reasons are held to paths: two sites of one path would be one."""
    inner = {"plain": "", "gpt2": "transformer"}.get(name, "model")
    for model in (tiny.build(name), tiny.build(name).get_submodule(inner)):
        sites = ModularOptimizationManager().registry.create(NAME, {"kv_placement": "host"}).sites(model)
        assert len({site.path for site in sites}) == len(sites)


def test_where_prompts_stay_whole_the_plan_counts_them_whole() -> None:
    model: Any = tiny.build("qwen3")
    inner = type(model.model).forward
    model.model.forward = lambda *given, **named: inner(model.model, *given, **named)
    receipt = apply(model).get_receipts(model)[0]
    assert {site.role for site in receipt.acted} == {"mlp", "loss"}
    assert receipt.decision["prefill_chunk_size"] == 0
    assert receipt.decision["layer_bytes"] <= receipt.decision["whole_bytes"]
    with pytest.raises(PlanError, match=r"for all tokens of a text of 512"):
        apply(model, max_activation_bytes="100KB")
