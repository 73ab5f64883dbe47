"""tensor_compression: every Linear and fused expert tensor, each skip with its reason, answers close to the plain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from inference_pio.artifact import load, save
from inference_pio.artifact.manifest import TENSORS
from inference_pio.errors import InvalidModel, InvalidSetting, NoEffect, PlanError, UnknownName
from inference_pio.formats import compressed_experts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.formats.int8 import Int8Experts, Int8Linear
from inference_pio.kernels.elementwise_backend import TRITON
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.memory import tensor_compression
from inference_pio.optimizations.memory.tensor_compression import TensorCompressionParameters
from inference_pio.plan.target import Wanted
from inference_pio.undo.checkpoint import read_header
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.sweep import Case


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_logits_stay_close_and_most_weights_are_covered(name: str) -> None:
    case = Case(name)
    case.apply("tensor_compression")
    after = tiny.logits(case.model, name)
    signal = case.logits.float().pow(2).mean()
    noise = (after.float() - case.logits.float()).pow(2).mean()
    assert 10 * torch.log10(signal / noise) > 20  # dB; bfloat16 arithmetic inside the layers is most of it
    assert not torch.equal(after, case.logits)
    assert after.dtype == case.logits.dtype


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_fused_experts_are_compressed_and_routers_are_not(name: str) -> None:
    case = Case(name)
    case.apply("tensor_compression")
    assert any(isinstance(module, Int8Experts) for module in case.model.modules())
    receipt = case.manager.get_receipts(case.model)[0]
    reasons = {skips["reason"] for skips in receipt.to_json()["skipped"]}
    assert any(reason.startswith("routers are kept") for reason in reasons)
    assert sum(site.nbytes for site in receipt.acted) > 0.5 * receipt.weight_bytes_before


def test_every_weight_matrix_is_a_site_or_a_skip_with_its_reason() -> None:
    for name in tiny.TINY:
        model = tiny.build(name)
        plan = ModularOptimizationManager().plan(model, ["tensor_compression"])
        told = {site.path for site in plan.steps[0].sites}
        for path, module in model.named_modules():
            if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                assert path in told, (name, path)


def test_vision_head_and_embeddings_are_kept() -> None:
    case = Case("qwen3_vl")
    case.apply("tensor_compression")
    compressed = [path for path, module in case.model.named_modules() if isinstance(module, Int8Linear)]
    assert compressed
    assert not [path for path in compressed if "visual" in path]
    assert isinstance(case.model.get_output_embeddings(), nn.Linear)


def test_a_layer_that_shares_its_weights_or_carries_hooks_is_passed_over() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    model[2].register_forward_hook(lambda *_: None)
    plan = ModularOptimizationManager().plan(model, ["tensor_compression"])
    reasons = {site.path: site.skip for site in plan.steps[0].sites}
    assert "shares its weights" in reasons["0"]
    assert "shares its weights" in reasons["1"]
    assert "hooks" in reasons["2"]
    assert reasons["3"] is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [(lambda: nn.Linear(8, 8), "the model itself"), (lambda: nn.Sequential(nn.Linear(0, 4)), "is empty")],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_bare_linear_and_an_empty_weight_are_passed_over(model: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(NoEffect, match=reason):
        ModularOptimizationManager().apply_optimizations(model(), ["tensor_compression"])


def test_a_module_that_two_parents_hold_is_compressed_once_for_both() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"one": nn.Sequential(shared), "two": nn.Sequential(shared)})
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"])
    assert model["one"][0] is model["two"][0]
    assert isinstance(model["one"][0], Int8Linear)
    manager.remove_optimizations(model)
    assert model["one"][0] is model["two"][0] is shared


def test_what_is_compressed_already_is_told() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0] = Int8Linear.from_linear(model[0])
    with pytest.raises(NoEffect):
        ModularOptimizationManager().apply_optimizations(model, ["tensor_compression"])


def test_applying_again_gives_the_same_compressed_bytes() -> None:
    case = Case("llama")
    case.apply("tensor_compression")
    first = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.manager.remove_optimizations(case.model)
    case.apply("tensor_compression")
    assert all(torch.equal(first[name], tensor) for name, tensor in case.model.state_dict().items())


EACH_FORMAT = pytest.mark.parametrize(
    "asked",
    [{"format": "int8"}, {"format": "fp8"}, {"format": "int4", "group_size": 32}],
    ids=["int8", "fp8", "int4"],
)
CALIBRATED: dict[str, Any] = {
    "format": "int4", "group_size": 32, "calibration": "gptq",
    "text": [[(7 * token * token + row) % 120 + 1 for token in range(64)] for row in range(16)],
}  # fmt: skip


def plan_of(model: nn.Module, **asked: Any) -> Any:
    return ModularOptimizationManager().plan(model, [Wanted("tensor_compression", asked)])


def reasons(model: nn.Module, **asked: Any) -> dict[str, str | None]:
    return {site.path: site.skip for site in plan_of(model, **asked).steps[0].sites}


@EACH_FORMAT
@pytest.mark.parametrize("name", ["llama", "gpt2", "glm4_moe"])
@pytest.mark.parametrize("keep", ["host", "disk", "device"])
def test_every_format_is_undone_to_the_bit_wherever_originals_wait(asked: dict[str, Any], name: str, keep: str) -> None:
    case = Case(name)
    assert case.apply("tensor_compression", parameters={"tensor_compression": asked}, keep_originals=keep)
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.decision["format"] == asked["format"]
    assert receipt.weight_bytes_after < receipt.weight_bytes_before
    assert not torch.equal(tiny.logits(case.model, name), case.logits)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@EACH_FORMAT
@pytest.mark.parametrize("other", ["flash_attention", "kernel_fusion"])
@pytest.mark.parametrize("first_out", [0, 1])
def test_every_format_comes_off_in_any_order(asked: dict[str, Any], other: str, first_out: int) -> None:
    case, alone = Case("qwen3", torch.bfloat16), Case("qwen3", torch.bfloat16)
    pair = ("tensor_compression", other)
    how = {"parameters": {"tensor_compression": asked}}
    assert case.apply(*pair, **how)
    first, second = pair[first_out], pair[1 - first_out]
    case.manager.remove_optimizations(case.model, [first])
    assert alone.apply(second, **(how if second in how["parameters"] else {}))
    assert torch.equal(tiny.logits(case.model, "qwen3"), tiny.logits(alone.model, "qwen3"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@EACH_FORMAT
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_failure_midway_leaves_no_trace_of_any_format(
    asked: dict[str, Any], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, how = Case("llama"), {"parameters": {"tensor_compression": asked}}
    replace, calls = Journal.replace, [0]

    def counted(journal: Journal, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == fatal:
            raise KeyboardInterrupt
        return replace(journal, *given)

    fatal = 0
    monkeypatch.setattr(Journal, "replace", counted)
    case.apply("tensor_compression", **how)
    case.manager.remove_optimizations(case.model)
    total, calls[0] = calls[0], 0
    fatal = total // 2 + 1 + round(share * (total // 2 - 1))  # the first half is the plan's rehearsal
    with pytest.raises(KeyboardInterrupt):
        case.apply("tensor_compression", **how)
    case.check_untouched()


@EACH_FORMAT
def test_originals_are_fetched_from_the_models_own_files(asked: dict[str, Any], tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    before, manager = fingerprint(model), ModularOptimizationManager()
    manager.apply_optimizations(
        model, ["tensor_compression"], parameters={"tensor_compression": asked}, keep_originals="checkpoint"
    )
    assert manager.get_receipts(model)[0].held_bytes < 2000
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


@EACH_FORMAT
@pytest.mark.parametrize("name", ["llama", "glm4_moe_lite"])
def test_a_saved_model_gives_the_same_bits(asked: dict[str, Any], name: str, tmp_path: Path) -> None:
    case = Case(name)
    case.apply("tensor_compression", parameters={"tensor_compression": asked})
    save(case.model, tmp_path / "saved")
    assert torch.equal(tiny.logits(load(tmp_path / "saved"), name), tiny.logits(case.model, name))
    held = read_header(tmp_path / "saved" / TENSORS)
    assert all(torch.equal(held[key].read(), value) for key, value in case.model.state_dict().items())


@EACH_FORMAT
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(asked: dict[str, Any], value: float) -> None:
    case = Case("llama")
    with torch.no_grad():
        case.model.model.layers[2].mlp.up_proj.weight[3, 5] = value
    before = fingerprint(case.model)
    with pytest.raises(InvalidModel, match=rf"layers\.2\.mlp\.up_proj\.weight holds NaN.*{asked['format']} form"):
        case.manager.apply_optimizations(case.model, ["tensor_compression"], parameters={"tensor_compression": asked})
    assert before.differences(fingerprint(case.model)) == []


def test_a_group_that_does_not_divide_the_inputs_is_told_with_the_one_that_does() -> None:
    with pytest.raises(NoEffect, match=r"groups of 128 do not divide its 64 inputs \(group_size=64 does\)"):
        plan_of(tiny.build("llama"), format="int4")
    told = reasons(tiny.build("llama"), format="int4", group_size=64)
    assert told["model.layers.0.self_attn.q_proj"] is None
    assert told["model.layers.0.mlp.down_proj"] == (
        "groups of 64 do not divide its 100 inputs (none of 32, 64, 128 does)"
    )


def test_targets_and_skips_choose_by_role_and_by_path() -> None:
    told = reasons(tiny.build("llama"), targets=["mlp", "model.layers.0.self_attn"], skip=["*.up_proj"])
    acting = {path for path, reason in told.items() if reason is None}
    assert acting == {
        *(f"model.layers.{layer}.mlp.{name}_proj" for layer in range(3) for name in ("gate", "down")),
        *(f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"),
    }
    assert told["model.layers.1.self_attn.q_proj"] == "it is not among the targets"
    assert told["model.layers.1.mlp.up_proj"] == "`skip` names it ('*.up_proj')"
    seen = reasons(tiny.build("qwen3_vl"), targets=["vision"])
    assert {path.split(".")[1] for path, reason in seen.items() if reason is None} == {"visual"}


def test_experts_alone_can_be_compressed() -> None:
    told = reasons(tiny.build("qwen3_moe"), targets=["experts"])
    assert [path for path, reason in told.items() if reason is None] == ["model.layers.1.mlp.experts"]


def test_what_means_nothing_in_a_model_is_said() -> None:
    notes = plan_of(tiny.build("llama"), targets=["mlp", "experts"], skip=["*.9.*"]).steps[0].notes
    assert "nothing in this model is meant by 'experts', '*.9.*'." in notes
    with pytest.raises(NoEffect, match="not among the targets"):
        plan_of(tiny.build("llama"), targets=["experts"])


@pytest.mark.parametrize(("head", "kind"), [(True, "int8"), ("int4", "int4"), ("fp8", "fp8")])
def test_the_head_is_compressed_on_request(head: bool | str, kind: str) -> None:
    case = Case("llama")
    case.apply("tensor_compression", parameters={"tensor_compression": {"head": head, "group_size": 32}
               if head == "int4" else {"head": head}})  # fmt: skip
    assert case.model.lm_head.format == kind
    assert case.model.model.layers[0].mlp.up_proj.format == "int8"
    assert case.manager.get_receipts(case.model)[0].decision["formats"] == {"lm_head": kind}
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_head_that_nobody_asks_for_is_passed_over_with_the_reason() -> None:
    for name in ("llama", "qwen3"):
        assert str(reasons(tiny.build(name))["lm_head"]).startswith("the head is kept")


@EACH_FORMAT
def test_coverage_stands_in_plan_and_receipt(asked: dict[str, Any]) -> None:
    case = Case("qwen3_moe")
    planned = plan_of(case.model, **asked).steps[0]
    case.apply("tensor_compression", parameters={"tensor_compression": asked})
    receipt = case.manager.get_receipts(case.model)[0]
    coverage = receipt.decision["coverage"]
    assert planned.decision["coverage"] == coverage
    compressed = sum(
        module.dequantize().numel() if isinstance(module, CompressedLinear) else
        sum(one.numel() for one in module.dequantize())
        for module in case.model.modules() if isinstance(module, CompressedModule)
    )  # fmt: skip
    assert coverage["parameters"] == compressed
    assert coverage["of_parameters"] == sum(one.numel() for one in tiny.build("qwen3_moe").parameters())
    assert coverage["roles"]["router"]["parameters"] == 0
    assert any("of the parameters and" in note and "router 0%" in note for note in receipt.notes)
    assert any("of the parameters and" in note for note in planned.notes)


def test_less_than_the_share_that_was_asked_for_is_an_error_before_anything_starts() -> None:
    case = Case("llama")
    with pytest.raises(PlanError, match=r"would compress \d+\.\d% of the parameters .*least_share asks for 99\.0%"):
        case.manager.apply_optimizations(
            case.model, ["tensor_compression"], parameters={"tensor_compression": {"least_share": 0.99}}
        )
    case.check_untouched()
    assert case.apply("tensor_compression", parameters={"tensor_compression": {"least_share": 0.5}})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"format": "int5"}, "unknown format 'int5'"),
        ({"head": "int5"}, "unknown format 'int5'"),
        ({"group_size": 32}, "group_size=32 is for formats with groups"),
        ({"format": "int4", "group_size": 48}, "group_size"),
        ({"text": ["a"]}, "choose calibration='gptq'"),
        ({"least_share": 1.5}, "least_share"),
        ({"calibration": "qat"}, "calibration"),
    ],
)
def test_wrong_settings_are_told(asked: dict[str, Any], said: str) -> None:
    with pytest.raises((InvalidSetting, UnknownName), match=said):
        plan_of(tiny.build("llama"), **asked)


def test_settings_of_every_format_survive_a_round_trip() -> None:
    for asked in (CALIBRATED, {"head": "fp8", "skip": ["*.0.*"], "targets": ["mlp"], "least_share": 0.25}):
        made = TensorCompressionParameters.read(asked, "it")
        assert TensorCompressionParameters.read(json.loads(json.dumps(made.model_dump(mode="json"))), "it") == made


# ---------------------------------------------------------------- calibrated rounding


def test_calibrated_rounding_is_recorded_undone_and_repeated_to_the_bit() -> None:
    case = Case("llama")
    case.apply("tensor_compression", parameters={"tensor_compression": CALIBRATED})
    receipt = case.manager.get_receipts(case.model)[0]
    found = receipt.decision["rounding"]
    assert found["method"] == "gptq"
    assert len(found["kept"]) + len(found["rounded_to_nearest"]) == 3
    assert found["held_out_divergence"]["kept"] <= found["held_out_divergence"]["nearest"]
    assert any("calibrated rounding is kept in" in note for note in receipt.notes)
    first = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
    case.apply("tensor_compression", parameters={"tensor_compression": CALIBRATED})
    assert all(torch.equal(first[name], tensor) for name, tensor in case.model.state_dict().items())


def test_a_plan_says_that_held_out_text_will_decide() -> None:
    assert any("held-out text" in note for note in plan_of(tiny.build("llama"), **CALIBRATED).steps[0].notes)


def test_a_saved_calibrated_model_needs_no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("llama")
    case.apply("tensor_compression", parameters={"tensor_compression": CALIBRATED})
    save(case.model, tmp_path / "saved")
    monkeypatch.setattr(tensor_compression, "round_calibrated", lambda *_: 1 / 0)
    again = load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, "llama"), tiny.logits(case.model, "llama"))


@pytest.mark.parametrize("text", [[[1, 2, 3]] * 4, [[5] * 64]])
def test_a_text_too_short_to_calibrate_on_is_refused_with_the_way_out(text: list[list[int]]) -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match="or calibration='none'"):
        case.manager.apply_optimizations(
            case.model, ["tensor_compression"], parameters={"tensor_compression": {**CALIBRATED, "text": text}}
        )
    case.check_untouched()


def test_on_a_cpu_fp8_says_what_it_costs() -> None:
    assert any("time is lost" in note for note in plan_of(tiny.build("llama"), format="fp8").steps[0].notes)


def test_where_kernels_compute_the_experts_of_few_tokens_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(name: str, format: str) -> bool:
        return any(
            "two launches a layer, in" in note for note in plan_of(tiny.build(name), format=format).steps[0].notes
        )

    assert not told("qwen3_moe", "int8")
    monkeypatch.setattr(compressed_experts, "choose_few_experts_backend", lambda *where: TRITON)
    assert told("qwen3_moe", "int8")
    assert not told("qwen3", "int8")


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(tiny.TINY))
def test_compression_works_and_is_undone_on_a_gpu(name: str) -> None:
    model = tiny.build(name, dtype=torch.bfloat16).cuda()
    before = tiny.logits(model, name)
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"])
    assert (tiny.logits(model, name) - before).float().pow(2).mean() < 0.1 * before.float().pow(2).mean()
    manager.remove_optimizations(model)
    assert torch.equal(tiny.logits(model, name), before)


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe"])
def test_activations_in_int8_go_with_weights_in_int8_and_come_back_from_a_file(name: str, tmp_path: Path) -> None:
    asked = {"activations": "int8"}
    case = Case(name)
    case.manager.apply_optimizations(case.model, ["tensor_compression"], parameters={"tensor_compression": asked})
    made = [module for module in case.model.modules() if isinstance(module, CompressedModule)]
    assert made
    assert all(module.codes_activations for module in made)
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.decision["activations"] == ["int8"]
    assert any("each token by itself" in note for note in receipt.notes)
    ids = torch.randint(0, 90, (2, 24), generator=torch.Generator().manual_seed(0))
    found = case.model(input_ids=ids).logits
    save(case.model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(again(input_ids=ids).logits, found)
    case.manager.remove_optimizations(case.model, ["tensor_compression"])
    case.check_untouched()


def test_other_formats_leave_activations_alone() -> None:
    case = Case("qwen3")
    case.apply("tensor_compression")
    assert not any(module.codes_activations for module in case.model.modules() if isinstance(module, CompressedModule))


def test_activations_of_another_kind_than_the_weights_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="format='fp8'"):
        TensorCompressionParameters.read({"activations": "fp8"}, "tensor_compression")
    with pytest.raises(InvalidSetting, match="format='int8'"):
        TensorCompressionParameters.read({"format": "int4", "activations": "int8"}, "tensor_compression")
    mixed = TensorCompressionParameters.read({"compression_ratio": 0.6, "activations": "int8"}, "tensor_compression")
    assert (mixed.format, mixed.activations) == ("mixed", "int8")


def test_activations_in_fp8_are_refused_where_nothing_multiplies_them() -> None:
    case = Case("qwen3")
    with pytest.raises(PlanError, match=r"compute capability 8\.9"):
        case.manager.apply_optimizations(
            case.model, ["tensor_compression"],
            parameters={"tensor_compression": {"format": "fp8", "activations": "fp8"}},
        )  # fmt: skip
    assert not case.manager.get_receipts(case.model)
