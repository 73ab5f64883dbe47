"""kernel_fusion at level graph: the user's own generate in whole steps, beside all that other optimizations do."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from inference_pio.decoding.takeover import engine_of
from inference_pio.errors import InvalidSetting
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.compute.kernel_fusion import KernelFusion
from tests import tiny
from tests.quality import reference_models
from tests.sweep import Case, rotating, turn_of_this_commit

FAMILIES = [name for name in tiny.HF_NAMES if name != "gpt2"]
NEW = 20


def plain_cache(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Recorded steps do not read a coded cache, which the sweep asks for."""
    return {"tensor_compression": {"kv_cache": "none"}} if "tensor_compression" in names else {}


def fuse(case: Case, *others: str, **parameters: Any) -> Any:
    """The receipt of the fusion, applied with other optimizations."""
    given = {"kernel_fusion": {"level": "graph", **parameters}, **plain_cache(others)}
    case.manager.apply_optimizations(case.model, [*others, "kernel_fusion"], parameters=given)
    return next(one for one in case.manager.get_receipts(case.model) if one.name == "kernel_fusion")


def say(model: Any, name: str, **how: Any) -> torch.Tensor:
    asked = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **how}
    kept = tiny._rope_deltas_kept(model) if name == "qwen3_vl" else contextlib.nullcontext()
    with kept:  # a model of pictures remembers where its last call stood
        said: torch.Tensor = model.generate(**tiny.inputs(name, model), **asked)
    return said


def calls(case: Case) -> dict[str, Any]:
    counted: dict[str, Any] = case.manager.get_optimization_status(case.model)["optimizations"]["kernel_fusion"][
        "counted"
    ]["decoding"]
    return counted


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_generate_says_the_same_and_its_status_counts(name: str, exact: bool) -> None:
    case = Case(name)
    before = say(case.model, name)
    receipt = fuse(case, exact=exact)
    computed = "torch" if exact else "torch, in few calls"
    assert receipt.decision["operations"] == computed
    assert f"generate decodes in whole steps, called one by one, computed by {computed}" in receipt.notes
    assert torch.equal(say(case.model, name), before)
    counted = calls(case)
    assert (counted["calls"], counted["new_tokens"], counted["left_to_the_library"]) == (1, 2 * NEW, {})
    assert counted["held_bytes"] > 0
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
    assert torch.equal(say(case.model, name), before)


@pytest.mark.parametrize(
    "others", [("flash_attention",), ("tensor_compression",), ("flash_attention", "tensor_compression")]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_are_what_the_library_would_do_with_the_same_optimizations(name: str, others: tuple[str, ...]) -> None:
    plain, case = Case(name), Case(name)
    plain.manager.apply_optimizations(plain.model, list(others), parameters=plain_cache(others))
    expected = say(plain.model, name)
    fuse(case, *others, exact=True)
    assert torch.equal(say(case.model, name), expected)
    assert calls(case)["calls"] == 1
    case.manager.remove_optimizations(case.model, ["kernel_fusion"])
    assert engine_of(case.model) is None
    assert torch.equal(say(case.model, name), expected)


def test_optimizations_that_come_and_go_are_followed() -> None:
    case = Case("glm4_moe_lite")
    before = say(case.model, "glm4_moe_lite")
    fuse(case, exact=True)
    assert torch.equal(say(case.model, "glm4_moe_lite"), before)
    case.manager.apply_optimizations(case.model, ["tensor_compression"])
    compressed = Case("glm4_moe_lite")
    compressed.manager.apply_optimizations(compressed.model, ["tensor_compression"])
    assert torch.equal(say(case.model, "glm4_moe_lite"), say(compressed.model, "glm4_moe_lite"))
    case.manager.remove_optimizations(case.model, ["tensor_compression"])
    assert torch.equal(say(case.model, "glm4_moe_lite"), before)
    assert calls(case)["left_to_the_library"] == {}


def test_patterns_of_attention_are_followed_step_by_step() -> None:
    case, other = Case("llama"), Case("llama")
    pattern: dict[str, Any] = {"sparse_attention": {"dense_below": 0, "window": 4, "sinks": 1, "min_coverage": 0.0}}
    other.manager.apply_optimizations(other.model, ["sparse_attention"], parameters=pattern)
    expected = say(other.model, "llama", max_new_tokens=60)
    given = pattern | {"kernel_fusion": {"level": "graph", "exact": True}}
    case.manager.apply_optimizations(case.model, ["sparse_attention", "kernel_fusion"], parameters=given)
    assert torch.equal(say(case.model, "llama", max_new_tokens=60), expected)
    assert calls(case)["calls"] == 1


def test_a_model_that_cannot_be_composed_is_told_and_an_order_refused() -> None:
    case = Case("llama")
    kind: Any = type(case.model)
    body = {"forward": lambda self, *given, **how: _negated(kind.forward(self, *given, **how))}
    case.model.__class__ = type("Negating", (kind,), body)
    with pytest.raises(InvalidSetting, match="gives other logits than the library"):
        fuse(case)
    assert "_inference_pio" not in vars(case.model)


def test_where_auto_reaches_steps_and_they_cannot_be_composed_the_rest_is_done_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KernelFusion, "_level", lambda self: "graph")  # as auto does on a GPU
    case = Case("llama")
    kind: Any = type(case.model)
    body = {"forward": lambda self, *given, **how: _negated(kind.forward(self, *given, **how))}
    case.model.__class__ = type("Negating", (kind,), body)
    before = say(case.model, "llama")
    auto = {"kernel_fusion": {"level": "auto"}}
    case.manager.apply_optimizations(case.model, ["kernel_fusion"], parameters=auto)
    (receipt,) = case.manager.get_receipts(case.model)
    (told,) = [note for note in receipt.notes if note.startswith("generate is left to the library: ")]
    assert "gives other logits than the library" in told
    assert any(note.startswith("fused: ") for note in receipt.notes)
    assert engine_of(case.model) is None
    assert torch.equal(say(case.model, "llama"), before)


def _negated(output: Any) -> Any:
    output.logits = -output.logits
    return output


def test_a_copy_decodes_by_itself() -> None:
    case = Case("qwen3")
    before = say(case.model, "qwen3")
    fuse(case)
    twin = copy.deepcopy(case.model)
    assert torch.equal(say(twin, "qwen3"), before)
    assert engine_of(twin) is not engine_of(case.model)
    case.manager.remove_optimizations(case.model)
    assert torch.equal(say(twin, "qwen3"), before)


@pytest.mark.parametrize("name", rotating(reference_models.NAMES, turn_of_this_commit()))
def test_trained_models_write_the_same_256_tokens(name: str) -> None:
    model = reference_models.load(name)
    prompt = reference_models.draw(0, windows=1, length=128)
    asked = {"max_new_tokens": 256, "min_new_tokens": 256, "do_sample": False, "pad_token_id": 0}
    before = model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    given = {"kernel_fusion": {"level": "graph", "exact": True}}
    ModularOptimizationManager().apply_optimizations(model, ["kernel_fusion"], parameters=given)
    after = model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    assert torch.equal(before, after)
    engine = engine_of(model)
    assert engine is not None
    assert engine.counts.new_tokens == 256
