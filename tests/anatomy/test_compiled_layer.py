"""Layers that torch compiles compute what they computed; what cannot be compiled is the library's, with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy import compiled_layer as module
from inference_pio.anatomy.compiled_layer import compiled_layers, why_it_failed
from inference_pio.errors import InvalidSetting
from inference_pio.manager import ModularOptimizationManager
from tests import tiny
from tests.sweep import Case, rotating, turn_of_this_commit

INDUCTOR = {"kernel_fusion": {"provider": "inductor"}}


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced whole, but not handed to a C++ compiler, which takes a minute a model."""
    monkeypatch.setattr(module, "COMPILER", "eager")
    monkeypatch.setattr(module, "_failed", {})
    torch._dynamo.reset()


def order(case: Case) -> Any:
    case.manager = ModularOptimizationManager()
    case.manager.apply_optimizations(case.model, ["kernel_fusion"], parameters=INDUCTOR)
    (receipt,) = case.manager.get_receipts(case.model)
    return receipt


@pytest.mark.parametrize("name", rotating(["gpt2", "llama", "qwen3_vl"], turn_of_this_commit(), 1))
def test_traced_layers_give_the_same_logits_and_tokens_and_come_off(name: str) -> None:
    case = Case(name)
    said = tiny.generate(case.model, name)
    before = Case(name)
    receipt = order(case)
    assert receipt.backend == "inductor"
    assert {site.role for site in receipt.sites if site.acts} == {"decoder_layer"}
    torch.testing.assert_close(tiny.logits(case.model, name), before.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(tiny.generate(case.model, name), said)
    assert why_it_failed(case.model) == {}
    assert all(layer in module._compiled for _, layer, reason in _layers(case) if reason is None)
    case.manager.remove_optimizations(case.model)
    assert "forward" not in vars(case.model.get_submodule(receipt.sites[0].path))


def _layers(case: Case) -> list[Any]:
    found = list(compiled_layers(case.model))
    return [(path, layer, "the vision tower is kept" if "visual" in path else None) for path, layer, _ in found]


def test_every_layer_of_a_deep_model_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(module, "COMPILER", keep)
    config = tiny.CONFIGS["gpt2"]()
    config.n_layer = config.num_hidden_layers = 12
    model: Any = tiny.build("gpt2", config=config)
    before = model(**tiny.inputs("gpt2", model)).logits
    ModularOptimizationManager().apply_optimizations(model, ["kernel_fusion"], parameters=INDUCTOR)
    with torch.no_grad():
        torch.testing.assert_close(model(**tiny.inputs("gpt2", model)).logits, before, rtol=1e-5, atol=1e-5)
    assert len(graphs) == 12
    assert why_it_failed(model) == {}


def test_layers_that_cannot_be_compiled_are_the_librarys_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> Any:
        raise RuntimeError("no such processor")

    monkeypatch.setattr(module, "COMPILER", refuse)
    case = Case("gpt2")
    order(case)
    assert torch.equal(tiny.logits(case.model, "gpt2"), case.logits)
    counted = case.manager.get_optimization_status(case.model)["optimizations"]["kernel_fusion"]["counted"]
    assert "no such processor" in counted["not_compiled"]["GPT2Block"]


def test_copies_training_and_gradients() -> None:
    case = Case("gpt2")
    order(case)
    twin = copy.deepcopy(case.model)
    assert torch.equal(tiny.logits(twin, "gpt2"), case.logits)
    given = tiny.inputs("gpt2", case.model)
    case.model(**given, labels=given["input_ids"]).loss.backward()
    assert case.model.transformer.h[0].mlp.c_fc.weight.grad is not None


def test_it_knows_no_levels() -> None:
    for wrong in ({"level": "merged"}, {"exact": True}):
        with pytest.raises(InvalidSetting, match="knows neither level nor exact"):
            ModularOptimizationManager().apply_optimizations(
                tiny.build("gpt2"), ["kernel_fusion"], parameters={"kernel_fusion": {"provider": "inductor", **wrong}}
            )


def test_lists_of_other_things_are_no_layers() -> None:
    assert list(compiled_layers(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))) == []
    model: Any = tiny.build("llama")
    model.model.layers[1].forward = model.model.layers[1].forward
    assert [reason for _, _, reason in compiled_layers(model)] == [
        None,
        "its forward is overridden by somebody else",
        None,
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_torchs_own_compiler_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPILER", "inductor")
    case = Case("gpt2")
    order(case)
    torch.testing.assert_close(tiny.logits(case.model, "gpt2"), case.logits, rtol=1e-4, atol=1e-4)
    assert why_it_failed(case.model) == {}
