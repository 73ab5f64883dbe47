"""format="mixed": within the bytes that were asked for, saved and loaded without calibration, undone to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.artifact import load, save
from inference_pio.artifact.manifest import TENSORS
from inference_pio.errors import InvalidSetting, NoEffect, PlanError
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.memory import tensor_compression
from inference_pio.optimizations.memory.tensor_compression import TensorCompressionParameters
from inference_pio.plan.target import Wanted
from inference_pio.undo.checkpoint import read_header
from tests import tiny
from tests.sweep import Case

TEXT = [[(7 * token * token + row) % 120 + 1 for token in range(64)] for row in range(16)]
RATIOS = {"llama": 0.8, "gpt2": 0.8, "qwen3": 0.8, "qwen3_moe": 0.77, "qwen3_vl": 0.8, "glm4_moe": 0.77,
          "glm4_moe_lite": 0.77}  # fmt: skip
"""Of float32 bytes; where experts are too narrow for int4, not much below int8."""


def asked(name: str, **more: Any) -> dict[str, Any]:
    return {"format": "mixed", "compression_ratio": RATIOS[name], "text": TEXT, **more}


def plan_of(model: nn.Module, **parameters: Any) -> Any:
    return ModularOptimizationManager().plan(model, [Wanted("tensor_compression", parameters)])


def applied(name: str, **more: Any) -> tuple[Case, Any]:
    case = Case(name)
    case.apply("tensor_compression", parameters={"tensor_compression": asked(name, **more)})
    return case, case.manager.get_receipts(case.model)[0]


def held_bytes(model: nn.Module, paths: Any) -> int:
    """What compressed layers hold, and others' weights."""
    modules = [model.get_submodule(path) for path in paths]
    return sum(
        sum(one.nbytes for one in module.buffers())
        if isinstance(module, CompressedModule)
        else sum(one.nbytes for one in module.parameters(recurse=False) if one.dim() > 1)
        for module in modules
    )


@pytest.mark.parametrize("keep", ["host", "disk", "device"])
@pytest.mark.parametrize("name", list(RATIOS))
def test_it_keeps_to_its_bytes_and_is_undone_to_the_bit(name: str, keep: str) -> None:
    case = Case(name)
    given = {"tensor_compression": asked(name, kv_cache="none")}
    assert case.apply("tensor_compression", parameters=given, keep_originals=keep)
    receipt = case.manager.get_receipts(case.model)[0]
    decision, formats = receipt.decision, receipt.decision["formats"]
    assert len(set(formats.values())) > 1
    real = held_bytes(case.model, formats)
    assert real == decision["mixture"]["predicted_bytes"] <= decision["mixed"]["budget_bytes"]
    assert receipt.weight_bytes_after == decision["mixed"]["beside_bytes"] + real
    for path, form in formats.items():
        assert getattr(case.model.get_submodule(path), "format", "kept") == form
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_plan_foretells_the_bytes_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_compression, "mix_formats", lambda *_: 1 / 0)
    plan = plan_of(tiny.build("llama"), **asked("llama"))
    bounds = plan.steps[0].decision["mixed"]
    shown = plan.steps[0].weight_bytes_after - bounds["beside_bytes"]
    assert 0.9 * bounds["budget_bytes"] < shown <= bounds["budget_bytes"]
    assert any("decided when it is applied" in note for note in plan.steps[0].notes)


def test_target_bytes_counts_all_weights_of_the_model() -> None:
    whole = 150_000
    case = Case("llama")
    case.apply("tensor_compression", parameters={"tensor_compression": {"target_bytes": whole, "text": TEXT}})
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.parameters["format"] == "mixed"
    assert 0.95 * whole < receipt.weight_bytes_after <= whole
    assert receipt.decision["mixed"]["budget_bytes"] == whole - receipt.decision["mixed"]["beside_bytes"]


def test_a_target_out_of_reach_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_compression, "calibration_source", lambda *_, **__: 1 / 0)
    for given in ({"target_bytes": 1000}, {"compression_ratio": 0.99}):
        case = Case("llama")
        with pytest.raises(PlanError, match=r"out of reach.*Ask for target_bytes=\d+"):
            case.manager.apply_optimizations(case.model, ["tensor_compression"],
                                             parameters={"tensor_compression": given})  # fmt: skip
        case.check_untouched()


def test_a_target_above_what_there_is_leaves_nothing_to_do() -> None:
    with pytest.raises(NoEffect, match="it would change nothing"):
        plan_of(tiny.build("llama"), target_bytes=10**9)


@pytest.mark.parametrize("name", ["llama", "glm4_moe_lite"])
def test_a_saved_model_needs_no_calibration(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, receipt = applied(name)
    save(case.model, tmp_path / "saved")
    monkeypatch.setattr(tensor_compression, "mix_formats", lambda *_: 1 / 0)
    monkeypatch.setattr(tensor_compression, "foretold", lambda *_: 1 / 0)
    again = load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, name), tiny.logits(case.model, name))
    held = read_header(tmp_path / "saved" / TENSORS)
    assert all(torch.equal(held[key].read(), value) for key, value in case.model.state_dict().items())
    for path, form in receipt.decision["formats"].items():
        assert getattr(again.get_submodule(path), "format", "kept") == form


def test_it_is_chosen_alike_each_time() -> None:
    case, receipt = applied("llama")
    first = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.manager.remove_optimizations(case.model)
    case.apply("tensor_compression", parameters={"tensor_compression": asked("llama")})
    assert case.manager.get_receipts(case.model)[0].decision == receipt.decision
    assert all(torch.equal(first[name], tensor) for name, tensor in case.model.state_dict().items())


def test_the_receipt_tells_roles_bytes_and_divergences() -> None:
    _, receipt = applied("llama")
    told = " ".join(receipt.notes)
    for word in ("mlp.down", "int8 (", "in groups of", "divergence on held-out text: mixed", "bytes; mixed is taken"):
        assert word in told
    assert "of the parameters and" in told
    json.dumps(receipt.decision)


def test_what_is_kept_is_told_as_kept() -> None:
    _, receipt = applied("llama", compression_ratio=0.6)
    kept = [path for path, form in receipt.decision["formats"].items() if form == "kept"]
    assert kept
    coverage = receipt.decision["mixture"]["coverage"]
    assert coverage["parameters"] < receipt.decision["coverage"]["parameters"]
    assert any(f"{coverage['share_of_parameters']:.1%} of the parameters" in note for note in receipt.notes)


@pytest.mark.parametrize(("head", "forms"), [(False, {None}), (True, {"int4", "int8", "kept"}), ("fp8", {"fp8"})])
def test_a_head_is_mixed_only_where_it_is_asked_for(head: bool | str, forms: set[str | None]) -> None:
    case, receipt = applied("llama", head=head)
    assert receipt.decision["formats"].get("lm_head") in forms
    settled = plan_of(tiny.build("llama"), **asked("llama", head=head)).steps[0].decision.get("formats", {})
    assert settled == ({"lm_head": head} if isinstance(head, str) else {})  # all else the text decides
    assert receipt.weight_bytes_after <= sum(receipt.decision["mixed"][key] for key in ("budget_bytes", "beside_bytes"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_rounding_takes_the_chosen_formats(method: str, tmp_path: Path) -> None:
    case, receipt = applied("llama", calibration=method)
    _, plain = applied("llama")
    assert receipt.decision["formats"] == plain.decision["formats"]
    assert receipt.decision["rounding"]["method"] == method
    after = receipt.decision["rounding"]["held_out_divergence"]
    assert after["nearest"] == pytest.approx(receipt.decision["mixture"]["held_out"]["mixed"]["divergence"], rel=1e-3)
    assert after["kept"] <= after["nearest"]
    save(case.model, tmp_path / "saved")
    assert torch.equal(tiny.logits(load(tmp_path / "saved"), "llama"), tiny.logits(case.model, "llama"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_the_cache_alone_needs_no_choice() -> None:
    case = Case("llama")
    given = {"target_bytes": 5, "targets": [], "kv_cache": "int8"}
    assert case.apply("tensor_compression", parameters={"tensor_compression": given})
    receipt = case.manager.get_receipts(case.model)[0]
    assert "mixture" not in receipt.decision
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"format": "mixed"}, "keeps to target_bytes or to compression_ratio, and none is given"),
        ({"target_bytes": 5, "compression_ratio": 0.5}, "and both are given"),
        ({"format": "int8", "target_bytes": 5}, "target_bytes is what format='mixed' keeps to, not int8"),
        ({"compression_ratio": 0.5, "group_size": 32}, "chooses groups by itself"),
        ({"compression_ratio": 1.0}, "compression_ratio"),
        ({"target_bytes": 0}, "target_bytes"),
        ({"head": "mixed"}, "head=true"),
    ],
)
def test_wrong_settings_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        plan_of(tiny.build("llama"), **given)


def test_settings_survive_a_round_trip() -> None:
    for given in ({"compression_ratio": 0.5, "text": TEXT}, {"format": "mixed", "target_bytes": 10, "head": True}):
        made = TensorCompressionParameters.read(given, "it")
        assert made.format == "mixed"
        assert TensorCompressionParameters.read(json.loads(json.dumps(made.model_dump(mode="json"))), "it") == made
