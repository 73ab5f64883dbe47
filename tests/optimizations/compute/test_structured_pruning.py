"""structured_pruning: smaller matrices everywhere, exactly undone, told in the plan, refused where it cannot be."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from inference_pio.anatomy.mlp_channels import InnerChannels, inner_channels
from inference_pio.artifact import load, save
from inference_pio.calibration import output_pass, saved_on_host
from inference_pio.contract.config import OptimizationConfig
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel, InvalidSetting, NoEffect, PlanError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.compute.structured_pruning import StructuredPruning
from tests import tiny
from tests.sweep import Case

NAMES = ["llama", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"]


def prune(model: nn.Module, **asked: Any) -> Any:
    manager = ModularOptimizationManager()
    settings = {"align": 8, "tokens": 512, **asked}
    manager.apply_optimizations(model, ["structured_pruning"], parameters={"structured_pruning": settings})
    return manager.get_receipts(model)[0]


def widths(model: nn.Module) -> dict[str, int]:
    return {one.path: one.width for one in inner_channels(model) if isinstance(one, InnerChannels)}


@pytest.mark.parametrize("allocation", ["measured", "uniform"])
@pytest.mark.parametrize("name", NAMES)
def test_matrices_are_smaller_and_generate_works(name: str, allocation: str) -> None:
    case = Case(name)
    before = widths(case.model)
    receipt = prune(case.model, pruning_ratio=0.5, allocation=allocation)
    after = widths(case.model)
    assert all(after[site.path] <= before[site.path] for site in receipt.acted)
    assert any(after[site.path] < before[site.path] for site in receipt.acted)
    assert receipt.weight_bytes_after < receipt.weight_bytes_before
    given = tiny.inputs(name, case.model)
    out = copy.deepcopy(case.model).generate(
        **given, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert out.shape[1] == given["input_ids"].shape[1] + 4
    assert tiny.logits(case.model, name).isfinite().all()
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("allocation", ["measured", "uniform"])
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe"])
def test_what_is_saved_comes_back_without_a_text(name: str, allocation: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    prune(model, allocation=allocation)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert widths(again) == widths(model)
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


@pytest.mark.parametrize(
    ("name", "asked", "reason"),
    [
        ("qwen3", {"units": ["kv_heads"]}, "heads go, and with them inputs"),
        ("qwen3_moe", {"units": ["expert_width"], "skip": ["*self_attn*"]}, "no plain linear layer that is meant"),
    ],
)
def test_where_nothing_can_be_fitted_to_the_stream_the_receipt_says_why(
    name: str, asked: dict[str, Any], reason: str
) -> None:
    model = tiny.build(name)
    receipt = prune(model, **asked, pruning_ratio=0.5, allocation="uniform", refit="stream")
    assert list(receipt.decision["chosen"]["held_out_divergence"]) == ["uniform"]
    (note,) = (note for note in receipt.notes if "whole model's stream" in note)
    assert reason in note


def test_what_is_fitted_to_the_stream_is_told_saved_and_taken_back(tmp_path: Path) -> None:
    case = Case("llama")
    chance = torch.Generator().manual_seed(0)
    long = torch.randint(1, 96, (4, 64), generator=chance).tolist() * 12  # held-out text is like what was learned from
    results = {path: one.weight for path, one in case.model.named_modules() if path.endswith("o_proj")}
    asked = {"pruning_ratio": 0.6, "allocation": "uniform", "refit": "stream", "text": long, "tokens": 4096}
    receipt = prune(case.model, **asked, skip=["*.layers.1.self_attn*"])
    tried = receipt.decision["chosen"]["held_out_divergence"]
    assert tried["refitted"] < tried["uniform"]
    changed = {path for path, weight in results.items() if case.model.get_submodule(path).weight is not weight}
    assert changed == {f"model.layers.{number}.self_attn.o_proj" for number in (2,)}
    assert "1 results of attentions are fitted again to the whole stream." in receipt.notes
    save(case.model, tmp_path / "saved")
    assert torch.equal(tiny.logits(load(tmp_path / "saved"), "llama"), tiny.logits(case.model, "llama"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


HEADS_AND_EXPERTS = [
    ("llama", ["kv_heads"]), ("qwen3", ["kv_heads", "mlp"]), ("qwen3_vl", ["kv_heads"]), ("qwen3_moe", ["experts"]),
    ("glm4_moe", ["experts", "kv_heads"]), ("glm4_moe_lite", ["experts"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "units"), HEADS_AND_EXPERTS)
def test_heads_and_experts_go_and_come_back(name: str, units: list[str], tmp_path: Path) -> None:
    case = Case(name)
    receipt = prune(case.model, pruning_ratio=0.5, units=units, tokens=256)
    config = case.model.config.get_text_config()
    counts = [config.num_key_value_heads, getattr(config, "num_local_experts", getattr(config, "num_experts", None))]
    assert counts[0] == 1 if "kv_heads" in units else counts[1] in (2, 4)
    assert {site.role for site in receipt.acted} == set(units)
    made = tiny.logits(case.model, name)
    again = load(save(case.model, tmp_path / "saved"))
    assert torch.equal(tiny.logits(again, name), made)
    given = tiny.inputs(name, case.model)
    for cache in ({}, {"cache_implementation": "static"}):
        out = copy.deepcopy(again).generate(
            **given, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0, **cache
        )
        assert out.shape[1] == given["input_ids"].shape[1] + 3
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_what_follows_reads_the_smaller_model_right() -> None:
    for name, units in (("qwen3", ["kv_heads"]), ("glm4_moe", ["kv_heads", "experts"])):
        case, alone = Case(name), tiny.build(name)
        asked = {"structured_pruning": {"align": 8, "units": units, "calibration": "none", "allocation": "uniform"}}
        names = ["structured_pruning", "flash_attention", "kernel_fusion"]
        case.manager.apply_optimizations(case.model, names, parameters=asked)
        ModularOptimizationManager().apply_optimizations(alone, names[:1], parameters=asked)
        torch.testing.assert_close(tiny.logits(case.model, name), tiny.logits(alone, name), rtol=1e-3, atol=1e-3)
        case.manager.remove_optimizations(case.model, ["structured_pruning"])
        torch.testing.assert_close(tiny.logits(case.model, name), case.logits, rtol=1e-3, atol=1e-3)
        case.manager.remove_optimizations(case.model)
        case.check_untouched()


def test_heads_that_cannot_go_are_told_with_the_reason() -> None:
    with pytest.raises(NoEffect, match="a latent that all of its heads share"):
        prune(tiny.build("glm4_moe_lite"), units=["kv_heads"])
    with pytest.raises(
        NoEffect, match=r"all layers must have as many key heads, and model\.layers\.1\.self_attn keeps"
    ):
        prune(tiny.build("llama"), units=["kv_heads"], skip=["model.layers.1.*"])
    with pytest.raises(NoEffect, match="of its 2 key heads 60% would go, and what is left is fewer than 1"):
        prune(tiny.build("llama"), units=["kv_heads"], pruning_ratio=0.6)
    with pytest.raises(NoEffect, match="of its 8 experts 90% would go, and what is left is fewer than 2"):
        prune(tiny.build("qwen3_moe"), units=["experts"], pruning_ratio=0.9)
    receipt = prune(tiny.build("qwen3_moe"), units=["experts", "expert_width"])
    assert [site.role for site in receipt.acted] == ["experts"]
    assert any("its experts go whole" in skip["reason"] for skip in receipt.to_json()["skipped"])


def test_without_a_text_the_smallest_weights_go_and_nothing_is_measured() -> None:
    model, first = tiny.build("llama"), tiny.build("llama")
    with torch.no_grad():
        for layer, other in zip(model.model.layers, first.model.layers, strict=True):
            layer.mlp.down_proj.weight[:, ::4] = other.mlp.down_proj.weight[:, ::4] = 0
    receipt = prune(model, calibration="none", allocation="uniform", align=25)
    assert set(widths(model).values()) == {75}
    torch.testing.assert_close(tiny.logits(model, "llama"), tiny.logits(first, "llama"), rtol=1e-4, atol=1e-4)
    assert any("no text has judged it" in note for note in receipt.notes)
    wants = [{"max_kl": 0.1}, {"refit": "stream"}]
    for asked in ({}, *({"allocation": "uniform", **want} for want in wants)):
        with pytest.raises(InvalidSetting, match="nothing to measure by"):
            prune(tiny.build("llama"), calibration="none", **asked)
    with pytest.raises(InvalidSetting, match="leave stray out"):
        prune(tiny.build("llama"), calibration="none", allocation="uniform", stray=0.125)


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "glm4_moe"])
def test_a_uniform_result_is_the_model_that_its_configuration_tells(name: str) -> None:
    model = tiny.build(name)
    prune(model, allocation="uniform", pruning_ratio=0.5)
    assert model.config.to_dict() != tiny.build(name).config.to_dict()
    again = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


def test_a_measured_result_leaves_the_configuration_and_says_so() -> None:
    model = tiny.build("llama")
    before = copy.deepcopy(model.config.to_dict())
    receipt = prune(model)
    assert model.config.to_dict() == before
    assert any("allocation='uniform'" in note for note in receipt.notes)
    assert {"uniform", "measured", "refitted"} == set(receipt.decision["chosen"]["held_out_divergence"])


def test_a_plan_tells_the_widths_without_a_text() -> None:
    model = tiny.build("llama")
    manager = ModularOptimizationManager()
    config = OptimizationConfig(name="structured_pruning", parameters={"align": 8})
    manager.configure_optimization(config.name, config)
    (step,) = manager.plan(model, ["structured_pruning"]).steps
    assert set(step.decision["widths"].values()) == {72}
    assert step.weight_bytes_after < sum(parameter.nbytes for parameter in model.parameters())
    assert any("decided when it is applied" in note for note in step.notes)


def test_units_targets_and_skips_are_kept_to() -> None:
    model = tiny.build("glm4_moe")
    before = widths(model)
    prune(model, units=["expert_width"], allocation="uniform")
    changed = {path for path, width in widths(model).items() if width != before[path]}
    assert changed
    assert all(path.endswith("experts") and "shared" not in path for path in changed)
    other = tiny.build("llama")
    receipt = prune(other, skip=["model.layers.1.*"], allocation="uniform")
    assert len(set(widths(other).values())) == 2
    assert [skip["reason"] for skip in receipt.to_json()["skipped"]] == ["`skip` names it ('model.layers.1.*')"]
    assert other.config.intermediate_size == 100  # not all modules that it tells about have one new width


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"pruning_ratio": 0.99}, "no multiple of align=8"),
        ({"align": 128}, "no multiple of align=128"),
        ({"pruning_ratio": 0.01, "align": 1, "units": ["expert_width"]}, "leaves mlp out"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(asked: dict[str, Any], told: str) -> None:
    case = Case("llama")
    with pytest.raises(NoEffect, match=told):
        prune(case.model, **asked)
    case.check_untouched()


@pytest.mark.parametrize(
    "asked",
    [
        {"pruning_ratio": 1.0},
        {"pruning_ratio": 0},
        {"units": ["head"]},
        {"align": 0},
        {"allocation": "best"},
        {"stray": 1.0},
    ],
)
def test_settings_without_a_sense_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        prune(tiny.build("llama"), **asked)


def test_a_loss_above_the_bar_is_refused_and_nothing_was_touched() -> None:
    case = Case("llama")
    with pytest.raises(PlanError, match="max_kl is 1e-09"):
        prune(case.model, max_kl=1e-9)
    case.check_untouched()


def test_too_few_tokens_and_no_numbers_are_refused_before_any_edit() -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match="tokens more at least"):
        prune(case.model, text=[[1, 2, 3, 4], [5, 6, 7, 8]])
    case.check_untouched()
    broken = tiny.build("llama")
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(InvalidModel, match="NaN or infinity"):
        prune(broken)


def test_what_gradients_needed_beyond_the_memory_waits_on_the_host_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, calls = output_pass._loss, list[int]()

    def without_room(*given: Any) -> Any:
        calls.append(1)
        found = loss(*given)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("none left")
        return found

    plain, model = tiny.build("llama"), tiny.build("llama")
    assert "saved_on_host_bytes" not in prune(plain).decision["chosen"]
    monkeypatch.setattr(output_pass, "_loss", without_room)
    monkeypatch.setattr(saved_on_host, "BESIDE_THE_HOST", frozenset({"cpu"}))
    monkeypatch.setattr(saved_on_host, "LEAST_BYTES", 1)
    receipt = prune(model)
    assert receipt.decision["chosen"]["saved_on_host_bytes"] > 0
    assert any("that gradients needed waited on the host" in note for note in receipt.notes)
    assert torch.equal(tiny.logits(model, "llama"), tiny.logits(plain, "llama"))


def test_shared_weights_are_kept_with_the_reason() -> None:
    model = tiny.build("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    receipt = prune(model, allocation="uniform")
    assert [site.path for site in receipt.acted] == ["model.layers.2.mlp"]
    assert {skip["reason"] for skip in receipt.to_json()["skipped"]} == {"it shares its weights with another module"}


def test_compression_and_fusion_follow_on_the_smaller_matrices() -> None:
    case = Case("qwen3")
    case.apply("structured_pruning", "tensor_compression", "kernel_fusion")
    assert next(receipt.name for receipt in case.manager.get_receipts(case.model)) == "structured_pruning"
    assert tiny.logits(case.model, "qwen3").isfinite().all()
    case.manager.remove_optimizations(case.model, ["structured_pruning"])
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_it_is_told_where_another_one_was_first() -> None:
    case = Case("qwen3")
    for priority, name in enumerate(["tensor_decomposition", "structured_pruning"]):
        small = dict(case.manager.registry.get(name).on_small_models)
        case.manager.configure_optimization(name, OptimizationConfig(name=name, priority=priority, parameters=small))
    with pytest.raises(NoEffect, match="another way than plain linear layers"):
        case.manager.apply_optimizations(case.model, ["tensor_decomposition", "structured_pruning"])
    case.check_untouched()


def test_the_whole_range_of_half_precision_is_numbers() -> None:
    model = tiny.build("qwen3", dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, :2] = torch.tensor([6e4, -6e4])
    StructuredPruning({"align": 8}).preflight(model, [Site("model.layers.0.mlp")])


def test_targets_and_skips_that_mean_nothing_are_told() -> None:
    receipt = prune(tiny.build("qwen3"), targets=["mlp", "layers.7"], skip=["*.attn", "*.layers.0.mlp"])
    assert "nothing in this model is meant by 'layers.7', '*.attn'." in receipt.notes
