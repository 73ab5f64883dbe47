"""The quality guard on a trained model, with the real steps: the guilty go, the innocent stay."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import inference_pio
from inference_pio.configuration import GlobalOptimizationProfile, QualityBounds, config_manager, get_config_manager
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.site import Site
from inference_pio.contract.verdict import StepCost
from inference_pio.errors import MeasureError, NothingApplied, PlanError, QualityBroken
from inference_pio.integration import (
    apply_qwen_optimizations,
    create_optimization_pipeline,
    get_model_optimization_status,
    guard_text,
    guarded,
    update_model_optimization,
)
from inference_pio.integration.asked import Asked
from inference_pio.integration.attribution import Attribution
from inference_pio.integration.targets import Changes
from inference_pio.manager.session import session_of
from inference_pio.measure.html.standing import quality_guard_lines
from inference_pio.measure.measurement import plain_json
from inference_pio.measure.reference import Reference
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.model_folder import byte_tokenizer
from tests.quality import reference_models

COMPRESSION = {"format": "int4", "group_size": 128}
SMALL = {"format": "int4", "group_size": 64}
PRUNING = {"pruning_ratio": 0.5, "tokens": 2048, "allocation": "uniform"}
MEMBERS: dict[str, dict[str, Any]] = {
    "flash_attention": {}, "tensor_compression": COMPRESSION, "structured_pruning": PRUNING,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _profiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of this file's own, and a fourth of the text: what steps cost here stands far apart."""
    monkeypatch.setattr(guard_text, "TOKENS", 512)
    monkeypatch.setattr(guard_text, "WINDOW", 257)
    config_manager._shared.cache_clear()
    get_config_manager().register_profile(GlobalOptimizationProfile(name="rough", default_settings=MEMBERS))
    get_config_manager().register_profile(
        GlobalOptimizationProfile(name="guarded", default_settings={"tensor_compression": SMALL}, max_kl=0.2)
    )
    yield
    config_manager._shared.cache_clear()


def status(model: Any) -> dict[str, Any]:
    return get_model_optimization_status(model)


def test_the_guilty_goes_and_the_innocent_stay() -> None:
    model = reference_models.load("qwen3")
    before = fingerprint(model)
    inference_pio.optimize(model, "rough", max_kl=0.1)
    found = status(model)
    assert found["applied"] == ["tensor_compression", "flash_attention"]
    verdict = found["quality_guard"]
    assert list(verdict["taken_back"]) == ["structured_pruning"]
    assert verdict["kl_before"] > 0.1 >= verdict["kl_nats_per_token"] > 0
    assert verdict["perplexity_ratio_before"] > verdict["perplexity_ratio"] > 1
    assert (verdict["tokens"], "evaluation part" in verdict["source"]) == (512, True)
    cost = {one["name"]: one["kl_bought"] for one in verdict["costs"]}
    assert set(cost) == set(MEMBERS)
    assert cost["structured_pruning"] > cost["tensor_compression"] > 5 * abs(cost["flash_attention"])
    (left,) = found["skipped"]
    assert "taken back by the quality guard: KL" in left["reason"]
    inference_pio.restore(model)
    assert before.differences(fingerprint(model)) == []


def test_a_bound_of_the_perplexity_is_held_too_and_an_order_that_breaks_it_is_told_not_taken() -> None:
    model = reference_models.load("qwen3")
    before = fingerprint(model)
    asked = Asked("demo", "lossless", Changes(parameters={"tensor_compression": COMPRESSION}))
    bounds = QualityBounds(max_perplexity_ratio=1.005)
    told = r"perplexity ratio 1\.\d+, above max_perplexity_ratio=1\.005.*tensor_compression costs"
    with pytest.raises(QualityBroken, match=told) as error:
        guarded.set_guarded_target(model, asked.target(model), "lossless", bounds)
    assert error.value.steps == ("tensor_compression",)
    assert before.differences(fingerprint(model)) == []


def test_where_the_bound_holds_it_is_measured_once_and_not_again_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference_models.load("qwen3")
    apply_qwen_optimizations(model, profile_name="guarded")
    verdict = status(model)["quality_guard"]
    assert 0 < verdict["kl_nats_per_token"] <= 0.2
    assert (verdict["costs"], verdict["taken_back"], verdict["bounds"]) == ([], {}, {"max_kl": 0.2})
    monkeypatch.delattr(Reference, "record")
    apply_qwen_optimizations(model, profile_name="guarded")
    assert status(model)["quality_guard"] == verdict
    update_model_optimization(model, "sparse_attention", enabled=False)
    assert status(model)["quality_guard"] == verdict, "nothing moved, and what was judged stands"
    update_model_optimization(model, "flash_attention", enabled=True)
    assert status(model)["quality_guard"] is None, "what was judged does not stand any more"


def test_a_verdict_is_of_what_was_asked_for_also_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    inference_pio.optimize(model, "balanced", max_kl=1e-9, tokenizer=byte_tokenizer())
    told = status(model)
    update_model_optimization(model, "flash_attention", enabled=True)  # an order now
    monkeypatch.delattr(Reference, "record")
    inference_pio.optimize(model, "balanced", max_kl=1e-9, tokenizer=byte_tokenizer())
    assert (status(model)["skipped"], status(model)["quality_guard"]) == (told["skipped"], told["quality_guard"])
    assert not any(member.order for member in session_of(model).target.values())  # type: ignore[union-attr]
    inference_pio.optimize(model, "lossless")
    assert (status(model)["applied"], status(model)["quality_guard"]) == (told["applied"], None)


class Shifted:
    """A tokenizer that reads the same text as other tokens."""

    def __init__(self) -> None:
        self.inner = byte_tokenizer()

    def __call__(self, *given: Any, **named: Any) -> Any:
        read = self.inner(*given, **named)
        read["input_ids"] = [1 + token % 90 for token in read["input_ids"]]
        return read


def test_other_weights_or_another_tokenizer_are_judged_anew() -> None:
    model = tiny.build("llama")
    inference_pio.optimize(model, "lossless", max_kl=0.5, tokenizer=byte_tokenizer())
    first = session_of(model).verdict  # type: ignore[union-attr]
    assert first is not None
    inference_pio.optimize(model, "lossless", max_kl=0.5, tokenizer=byte_tokenizer())
    assert session_of(model).verdict is first  # type: ignore[union-attr]
    inference_pio.optimize(model, "lossless", max_kl=0.5, tokenizer=Shifted())
    second = session_of(model).verdict  # type: ignore[union-attr]
    assert second is not first
    model.load_state_dict(model.state_dict())
    assert status(model)["quality_guard"] is None
    inference_pio.optimize(model, "lossless", max_kl=0.5, tokenizer=Shifted())
    third = session_of(model).verdict  # type: ignore[union-attr]
    assert third is not None
    assert third is not second
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.01)
    inference_pio.optimize(model, "lossless", max_kl=0.5, tokenizer=Shifted())
    assert session_of(model).verdict is not third  # type: ignore[union-attr]


def test_a_verdict_is_saved_with_the_model(tmp_path: Any) -> None:
    model = tiny.build("llama")
    inference_pio.optimize(model, "balanced", max_kl=0.5, tokenizer=byte_tokenizer())
    told = status(model)["quality_guard"]
    assert told is not None
    loaded = inference_pio.load(inference_pio.save(model, tmp_path / "saved"))
    assert status(loaded)["quality_guard"] == told
    update_model_optimization(loaded, "flash_attention", enabled=False)
    assert status(loaded)["quality_guard"] is None


def test_a_verdict_on_a_step_that_said_no_numbers_is_saved_too(tmp_path: Any) -> None:
    model = tiny.build("llama")
    inference_pio.optimize(model, "balanced", max_kl=0.5, tokenizer=byte_tokenizer())
    session = session_of(model)
    assert session is not None
    assert session.verdict is not None
    cost = StepCost("tensor_compression", False, math.inf, math.nan, 0)
    gone = {"tensor_compression": "taken back by the quality guard"}
    session.verdict = replace(session.verdict, kl_before=math.inf, costs=(cost,), taken_back=gone)
    loaded = inference_pio.load(inference_pio.save(model, tmp_path / "saved"))
    told = status(loaded)["quality_guard"]
    assert plain_json(told) == plain_json(session.verdict.to_json())
    assert "KL inf nats/token" in str(quality_guard_lines(told))


def test_without_bounds_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Reference, "record")
    model = tiny.build("llama")
    for name in ("lossless", "balanced", "performance", "memory_efficient"):
        apply_qwen_optimizations(model, profile_name=name)
        assert status(model)["quality_guard"] is None


def test_where_every_member_has_to_go_it_is_refused_and_the_model_is_as_before() -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    pipeline = create_optimization_pipeline(profile_name="guarded", max_kl=1e-9)
    with pytest.raises(NothingApplied, match="tensor_compression: taken back by the quality guard: KL"):
        pipeline(model, byte_tokenizer())
    assert before.differences(fingerprint(model)) == []
    assert status(model)["quality_guard"] is None


class Spoiler(OptimizationInterface):
    """What no step may do, and one in a package of its own might: a norm that answers NaN."""

    name = "spoiler"
    optimization_type = OptimizationType.COMPUTE

    def sites(self, model: nn.Module) -> list[Site]:
        return [Site("model.norm", "norm")]

    def apply(self, model: nn.Module) -> nn.Module:
        norm = model.get_submodule("model.norm")
        self.journal.set(norm, "weight", nn.Parameter(torch.full_like(norm.weight, torch.nan)))  # type: ignore[arg-type]
        return model


def test_answers_that_are_no_numbers_are_too_far_for_every_bound() -> None:
    registry = inference_pio.get_optimization_manager().registry
    registry.register(Spoiler)
    try:
        profile = GlobalOptimizationProfile(
            name="spoilt", default_settings={"spoiler": {}, "flash_attention": {}}, max_kl=1.0
        )
        get_config_manager().register_profile(profile)
        model = tiny.build("llama")
        inference_pio.optimize(model, "spoilt", tokenizer=byte_tokenizer())
    finally:
        registry.unregister("spoiler")
    verdict = status(model)["quality_guard"]
    assert list(verdict["taken_back"]) == ["spoiler"]
    assert (verdict["kl_before"], status(model)["applied"]) == (float("inf"), ["flash_attention"])


@pytest.mark.parametrize(("error", "place"), [(KeyboardInterrupt, "_guilty"), (MeasureError, "_without_each")])
def test_whatever_ends_the_guard_the_model_has_again_what_it_had(
    error: type[BaseException], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("llama")
    plain = fingerprint(model)
    inference_pio.optimize(model, "guarded", max_kl=9.0, tokenizer=byte_tokenizer())
    had, said = status(model), tiny.logits(model, "llama")

    def ends(self: Attribution, *rest: object) -> None:
        raise error

    monkeypatch.setattr(Attribution, place, ends)
    with pytest.raises(error):
        inference_pio.optimize(model, "balanced", max_kl=1e-9, tokenizer=byte_tokenizer())
    assert status(model)["applied"] == had["applied"]
    assert status(model)["quality_guard"] == had["quality_guard"]
    assert torch.equal(tiny.logits(model, "llama"), said)
    inference_pio.restore(model)
    assert plain.differences(fingerprint(model)) == []


def test_calls_in_other_threads_wait_until_the_guard_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    inference_pio.optimize(model, "lossless")
    answered: list[torch.Tensor] = []
    caller = threading.Thread(target=lambda: answered.append(tiny.logits(model, "llama")))
    without_each = Attribution._without_each

    def meanwhile(self: Attribution) -> Any:
        caller.start()
        found = without_each(self)
        caller.join(timeout=0.2)
        assert not answered, "a call ran through a model that stood half tried"
        return found

    monkeypatch.setattr(Attribution, "_without_each", meanwhile)
    inference_pio.optimize(model, "balanced", max_kl=1e-9, tokenizer=byte_tokenizer())
    caller.join(timeout=30)
    assert torch.equal(answered[0], tiny.logits(model, "llama"))


def test_calls_wait_also_while_nothing_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the unmodified model is recorded: a call then was answered by it, or waited and was waited for."""
    model = tiny.build("llama")
    inference_pio.optimize(model, "lossless")
    answered: list[torch.Tensor] = []
    caller = threading.Thread(target=lambda: answered.append(tiny.logits(model, "llama")))
    record = Reference.record

    def meanwhile(*given: Any) -> Reference:
        caller.start()
        caller.join(timeout=0.2)
        assert not answered, "a call ran through the model between two edits"
        return record(*given)

    monkeypatch.setattr(Reference, "record", meanwhile)
    inference_pio.optimize(model, "balanced", max_kl=1e-9, tokenizer=byte_tokenizer())
    caller.join(timeout=30)
    assert status(model)["applied"] == ["flash_attention", "kernel_fusion"]
    assert torch.equal(answered[0], tiny.logits(model, "llama"))


def test_a_model_that_trains_is_refused_before_anything_is_taken_off() -> None:
    model = inference_pio.optimize(tiny.build("llama"), "balanced").train()
    kept = fingerprint(model)
    with pytest.raises(MeasureError, match="training mode"):
        inference_pio.optimize(model, "lossless", max_kl=0.1)
    assert kept.differences(fingerprint(model)) == [], "what stood was made anew"


def test_a_model_whose_original_is_gone_is_refused(tmp_path: Any) -> None:
    inference_pio.save(inference_pio.optimize(tiny.build("llama")), tmp_path / "saved")
    loaded = inference_pio.load(tmp_path / "saved")
    with pytest.raises(PlanError, match="judges by what the unmodified model says"):
        inference_pio.optimize(loaded, "lossless", max_kl=0.1)


def test_a_further_model_of_the_same_kind_is_not_measured(llama_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = QualityBounds(max_kl=1e-9)
    asked = Asked(str(llama_folder), "balanced", bounds=bounds)
    first, second = asked.open(), asked.open()
    asked.apply(first)
    monkeypatch.delattr(Reference, "record")
    asked.apply(second)
    assert status(second.model)["quality_guard"] == status(first.model)["quality_guard"]
    assert status(second.model)["applied"] == status(first.model)["applied"] == ["flash_attention", "kernel_fusion"]


@pytest.mark.gpu
def test_on_a_gpu_the_guilty_goes_and_the_innocent_stay() -> None:
    model = reference_models.load("qwen3").cuda()
    before = fingerprint(model)
    inference_pio.optimize(model, "rough", max_kl=0.1)
    assert list(status(model)["quality_guard"]["taken_back"]) == ["structured_pruning"]
    assert "tensor_compression" in status(model)["applied"]
    inference_pio.restore(model)
    assert before.differences(fingerprint(model)) == []
