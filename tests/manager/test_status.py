"""The status says whether there is a way back, and why not where there is none."""

from __future__ import annotations

import json

import pytest

from inference_pio.errors import VaultError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.memory.tensor_compression import TensorCompression, TensorCompressionParameters
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.sweep import Case


def test_an_ordinary_model_is_reversible_and_has_nothing_applied() -> None:
    status = Case("llama").manager.get_optimization_status(tiny.build("llama"))
    assert (status["reversible"], status["applied"]) == ("yes", [])
    assert not any(entry["enabled"] for entry in status["optimizations"].values())


def test_the_status_holds_what_a_monitor_asks_for_and_is_plain_json() -> None:
    case = Case("qwen3")
    case.manager.set_target(case.model, ["flash_attention", "tensor_compression"], profile="mine")
    status = case.manager.get_optimization_status(case.model)
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    assert (status["model_id"], status["model_family"]) == (status["model"], "qwen")
    assert status["total_optimizations_available"] == len(case.manager.get_available_optimizations())
    compression, flash = status["applied_optimizations"]
    defaults = json.loads(TensorCompressionParameters(**TensorCompression.on_small_models).model_dump_json())
    assert (compression["name"], compression["parameters"]) == ("tensor_compression", defaults)
    assert defaults["format"] == "int8"
    assert compression["receipt"]["held_bytes"] + flash["receipt"]["held_bytes"] == status["held_bytes"]
    counters = status["counters"]
    assert counters["sites_acted"] == sum(one["receipt"]["site_count"] for one in (compression, flash))
    assert counters["sites_skipped"] > 0
    assert counters["weight_bytes_saved"] == (
        compression["receipt"]["weight_bytes_before"] - compression["receipt"]["weight_bytes_after"]
    )


def test_the_status_tells_what_was_skipped_and_why() -> None:
    manager, model = ModularOptimizationManager(), tiny.build("plain")
    wishes = [manager.wanted(name, order=False) for name in ("flash_attention", "tensor_compression")]
    manager.set_target(model, wishes, profile="mine")
    status = manager.get_optimization_status(model)
    assert status["model_family"] == "other"
    (skipped,) = status["skipped"]
    assert (skipped["name"], status["counters"]["skipped"]) == ("flash_attention", 1)
    assert skipped["reason"]
    manager.remove_optimizations(model)
    status = manager.get_optimization_status(model)
    assert (status["applied_optimizations"], status["skipped"], status["held_bytes"]) == ([], [], 0)
    assert set(status["counters"].values()) == {0}


def test_originals_given_up_on_purpose_are_told_and_cannot_come_back() -> None:
    case = Case("llama")
    case.apply("tensor_compression", keep_originals="none")
    assert "given up" in case.manager.get_optimization_status(case.model)["reversible"]
    before = fingerprint(case.model)
    with pytest.raises(VaultError, match="load the model anew"):
        case.manager.remove_optimizations(case.model)
    assert before.differences(fingerprint(case.model)) == []
