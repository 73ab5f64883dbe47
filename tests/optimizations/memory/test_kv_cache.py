"""tensor_compression's `kv_cache`: generate keeps its tokens as codes, with weights as codes or as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from inference_pio.artifact import load, save
from inference_pio.cache import KV_FORMATS, CodedCache
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.site import Site
from inference_pio.errors import ConflictError, InvalidSetting, NoEffect, PlanError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.plan.target import Wanted
from tests import tiny
from tests.cache.test_paged_cache import sliding_model
from tests.cache.walks import prompt
from tests.sweep import Case

EACH_FORMAT = pytest.mark.parametrize("kv_format", KV_FORMATS)
LONG = prompt(2, 200, (0, 9))


def asked(kv_format: str, **more: Any) -> dict[str, Any]:
    """The cache alone; weights stay as they are."""
    return {"parameters": {"tensor_compression": {"kv_cache": kv_format, "targets": [], **more}}}


def say(model: Any, given: dict[str, torch.Tensor] = LONG, **options: Any) -> Any:
    return model.generate(**given, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, **options)


def counted(case: Case) -> dict[str, Any]:
    status = case.manager.get_optimization_status(case.model)
    return {one["name"]: one.get("counted") for one in status["applied_optimizations"]}


@EACH_FORMAT
@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_generate_uses_it_and_gives_it_back_to_the_bit(name: str, kv_format: str) -> None:
    case, plain = Case(name), tiny.build(name)
    assert case.apply("tensor_compression", **asked(kv_format))
    found = say(case.model)
    assert isinstance(found.past_key_values, CodedCache)
    assert torch.equal(found.sequences, say(plain, past_key_values=CodedCache.of(plain, kv_format)).sequences)
    assert counted(case)["tensor_compression"] == {
        "kv_cache": {"format": kv_format, "calls": 1, "left_to_the_library": {}}
    }
    case.manager.remove_optimizations(case.model)
    assert torch.equal(say(case.model).sequences, say(plain).sequences)
    if name != "qwen3_vl":  # whose generate itself leaves a mark of where its pictures were
        case.check_untouched()


@EACH_FORMAT
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_weights_and_cache_are_coded_together(name: str, kv_format: str) -> None:
    case = Case(name, torch.bfloat16)
    case.apply("tensor_compression", parameters={"tensor_compression": {"kv_cache": kv_format}})
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.weight_bytes_after < receipt.weight_bytes_before
    assert isinstance(say(case.model).past_key_values, CodedCache)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_the_receipt_tells_format_bytes_layers_and_what_was_passed_over() -> None:
    model, manager = sliding_model(), ModularOptimizationManager()
    planned = manager.plan(model, [Wanted("tensor_compression", {"kv_cache": "int4", "targets": []})]).steps[0]
    manager.apply_optimizations(model, ["tensor_compression"], **asked("int4"))
    receipt = manager.get_receipts(model)[0]
    coded = receipt.decision["kv_cache"]
    assert planned.decision["kv_cache"] == coded
    assert coded["layers"] == {"model.layers.1.self_attn": 1, "model.layers.2.self_attn": 2}
    assert coded["bytes_a_token_before"] == 2 * 2 * 2 * 24 * 4  # layers, sides, heads, width, float32
    assert coded["bytes_a_token"] == 2 * 2 * 24 * (5 + 4 + 32 / 24) / 8
    assert receipt.backend == "int4 cache, weights as they are"
    told = [
        note for note in receipt.notes if "of 2 layers as int4: 124 bytes a token and row in the place of 768" in note
    ]
    assert len(told) == 1
    skips = {skips["reason"]: skips["paths"] for skips in receipt.to_json()["skipped"]}
    assert skips["its cache is the library's DynamicSlidingWindowLayer, which keeps a window of 20 tokens"] == [
        "model.layers.0.self_attn"
    ]
    report = say(model).past_key_values.report()
    assert report["layers"] == {"DynamicSlidingWindowLayer": 1, "int4": 2}


def test_without_it_generate_is_left_alone() -> None:
    model, manager = tiny.build("qwen3"), ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"])
    receipt = manager.get_receipts(model)[0]
    assert "kv_cache" not in receipt.decision
    assert not any(site.role == "kv_cache" for site in receipt.sites)
    assert not isinstance(say(model).past_key_values, CodedCache)
    assert "counted" not in manager.get_optimization_status(model)["applied_optimizations"][0]


@EACH_FORMAT
def test_a_saved_model_keeps_coding_its_cache(kv_format: str, tmp_path: Path) -> None:
    case = Case("glm4_moe_lite")
    case.apply("tensor_compression", parameters={"tensor_compression": {"kv_cache": kv_format}})
    said = say(case.model)
    save(case.model, tmp_path / "saved")
    found = say(load(tmp_path / "saved"))
    assert isinstance(found.past_key_values, CodedCache)
    assert found.past_key_values.kv_format == kv_format
    assert torch.equal(found.sequences, said.sequences)


def test_a_cache_alone_is_saved_too(tmp_path: Path) -> None:
    case = Case("llama")
    case.apply("tensor_compression", **asked("int4"))
    save(case.model, tmp_path / "saved")
    assert isinstance(say(load(tmp_path / "saved")).past_key_values, CodedCache)


def test_the_engine_reads_the_codes() -> None:
    case, plain = Case("qwen3"), tiny.build("qwen3")
    case.apply("tensor_compression", **asked("int8"))
    case.apply("kernel_fusion", parameters={"kernel_fusion": {"level": "graph"}})
    found = say(case.model)
    assert isinstance(found.past_key_values, CodedCache)
    assert torch.equal(found.sequences, say(plain, past_key_values=CodedCache.of(plain, "int8")).sequences)
    decoding = counted(case)["kernel_fusion"]["decoding"]
    assert (decoding["calls"], decoding["left_to_the_library"]) == (1, {})
    case.manager.remove_optimizations(case.model, ["tensor_compression"])
    assert not isinstance(say(case.model).past_key_values, CodedCache)
    assert counted(case)["kernel_fusion"]["decoding"]["calls"] == 1  # made anew over what lies under it now
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("other", ["flash_attention", "adaptive_sparse_attention", "sparse_attention"])
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_attention_of_other_kinds_reads_it(name: str, other: str) -> None:
    case, alone = Case(name), Case(name)
    if not case.apply(other) or not alone.apply(other):
        pytest.skip(f"{other} does not apply to {name}")
    wanted = say(alone.model, past_key_values=CodedCache.of(alone.model, "int8"), output_logits=True)
    case.apply("tensor_compression", **asked("int8"))
    found = say(case.model, output_logits=True)
    assert isinstance(found.past_key_values, CodedCache)
    for one, two in zip(found.logits, wanted.logits, strict=True):
        assert torch.equal(one, two)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


class OtherFormat(OptimizationInterface):
    """Somebody else's, who wants the format of the cache for himself."""

    name = "other_format"
    optimization_type = OptimizationType.MEMORY
    stage: ClassVar[Stage] = Stage.STORAGE

    def sites(self, model: Any) -> list[Site]:
        return [Site("model.layers.0.self_attn", claims=frozenset({"kv.format"}), whole=False)]

    def apply(self, model: Any) -> Any:
        self.journal.set(model, "other_format", True)
        return model


class LaterFormat(OtherFormat):
    name = "later_format"
    stage: ClassVar[Stage] = Stage.PLACEMENT


def test_two_of_one_stage_that_want_the_format_are_refused_and_a_later_one_takes_it() -> None:
    model, manager = tiny.build("llama"), ModularOptimizationManager()
    manager.register_optimization(OtherFormat)
    manager.register_optimization(LaterFormat)
    with pytest.raises(ConflictError, match=r"both claim 'kv.format' at model\.layers\.0\.self_attn"):
        manager.apply_optimizations(model, ["tensor_compression", "other_format"], **asked("int8"))
    manager.apply_optimizations(model, ["tensor_compression", "later_format"], **asked("int8"))
    receipt = next(one for one in manager.get_receipts(model) if one.name == "tensor_compression")
    assert sorted(receipt.decision["kv_cache"]["layers"].values()) == [1, 2]
    assert say(model).past_key_values.report()["layers"] == {"int8": 2, "DynamicLayer": 1}
    manager.remove_optimizations(model)


def test_what_has_no_such_cache_is_told() -> None:
    manager = ModularOptimizationManager()
    with pytest.raises(NoEffect, match="no transformers configuration to tell the layers of its cache by"):
        manager.apply_optimizations(tiny.build("plain"), ["tensor_compression"], **asked("int8"))
    model = tiny.build("plain")
    manager.apply_optimizations(model, ["tensor_compression"], parameters={"tensor_compression": {"kv_cache": "int8"}})
    reasons = [skips["reason"] for skips in manager.get_receipts(model)[0].to_json()["skipped"]]
    assert "it has no transformers configuration to tell the layers of its cache by" in reasons
    manager.remove_optimizations(model)


@pytest.mark.parametrize("wrong", ["int3", "FP8", ""])
def test_an_unknown_format_is_answered_with_the_known_ones(wrong: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"unknown kv_cache format '{wrong}'.*Known: fp8, int4, int8, none"):
        ModularOptimizationManager().plan(tiny.build("llama"), [Wanted("tensor_compression", {"kv_cache": wrong})])


def test_a_least_share_still_means_weights() -> None:
    with pytest.raises(PlanError, match=r"would compress 0\.0% of the parameters"):
        ModularOptimizationManager().apply_optimizations(
            tiny.build("llama"), ["tensor_compression"], **asked("int8", least_share=0.1)
        )


def test_it_is_switched_on_and_off_while_weights_stay_coded() -> None:
    case = Case("llama")
    case.apply("tensor_compression", parameters={"tensor_compression": {"kv_cache": "none"}})
    codes = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.apply("tensor_compression", parameters={"tensor_compression": {"kv_cache": "int8"}})
    assert isinstance(say(case.model).past_key_values, CodedCache)
    case.apply("tensor_compression", parameters={"tensor_compression": {"kv_cache": "none"}})
    assert not isinstance(say(case.model).past_key_values, CodedCache)
    assert all(torch.equal(codes[name], tensor) for name, tensor in case.model.state_dict().items())
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
