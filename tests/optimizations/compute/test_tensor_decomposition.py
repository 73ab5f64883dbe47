"""tensor_decomposition: two factors everywhere, exactly undone, told in the plan, refused where it cannot be."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.artifact import load, save
from inference_pio.contract.config import OptimizationConfig
from inference_pio.decoding.takeover import engine_of
from inference_pio.errors import InvalidModel, InvalidSetting, NoEffect, PlanError, RefusedOnOptimized
from inference_pio.formats.coded_residual import CodedResidual
from inference_pio.formats.factored_conv import FactoredConv
from inference_pio.formats.factored_linear import FactoredLinear
from inference_pio.formats.int8 import Int8Linear
from inference_pio.manager import ModularOptimizationManager, get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.sweep import Case

NAMES = [name for name in tiny.HF_NAMES if name != "gpt2"]
SHORT = [[1 + (place * place + row) % 96 for place in range(32)] for row in range(6)]
SETTINGS = {"text": SHORT, "refuse_slower": False}


def decomposed(model: nn.Module, **asked: Any) -> Any:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(
        model, ["tensor_decomposition"], parameters={"tensor_decomposition": {**SETTINGS, **asked}}
    )
    return manager.get_receipts(model)[0]


def layers_of(model: nn.Module) -> dict[str, FactoredLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, FactoredLinear)}


def generated(model: nn.Module, name: str) -> torch.Tensor:
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    tokens: torch.Tensor = model.generate(**tiny.inputs(name, model), **how)  # type: ignore[operator]
    return tokens


@pytest.mark.parametrize("form", ["pivoted", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_smaller_and_generate_works(name: str, form: str) -> None:
    case = Case(name)
    receipt = decomposed(case.model, decomposition_ratio=0.4, form=form)
    layers = layers_of(case.model)
    assert set(layers) <= {site.path for site in receipt.acted}
    assert len(layers) > 3
    assert receipt.weight_bytes_after < receipt.weight_bytes_before
    queries = [layer for path, layer in layers.items() if path.endswith(("q_proj", "k_proj", "v_proj"))]
    assert name == "glm4_moe_lite" or len({id(layer.into) for layer in queries}) == len(queries) / 3
    assert all((layer.into.order is None) == (form == "plain") for layer in layers.values())
    assert generated(copy.deepcopy(case.model), name).shape[1] == tiny.TEXT_TOKENS + 4
    assert tiny.logits(case.model, name).isfinite().all()
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("allocation", ["measured", "foretold", "uniform"])
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite", "gpt2"])
def test_what_is_saved_comes_back_without_a_text(name: str, allocation: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    decomposed(model, allocation=allocation, decomposition_ratio=0.3)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert {path: layer.into.rank for path, layer in layers_of(again).items()} == {
        path: layer.into.rank for path, layer in layers_of(model).items()
    }
    for path, layer in layers_of(again).items():
        assert (layer.into is layers_of(again)[path.replace("k_proj", "q_proj")].into) or "down" in path
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


@pytest.mark.parametrize(
    ("name", "residual", "allocation"), [("qwen3", "int4", "measured"), ("gpt2", "int8", "uniform")]
)
def test_codes_stand_beside_the_factors_and_all_comes_back(
    name: str, residual: str, allocation: str, tmp_path: Path
) -> None:
    case = Case(name)
    receipt = decomposed(case.model, residual=residual, allocation=allocation, decomposition_ratio=0.4)
    made = {path: one for path, one in case.model.named_modules() if isinstance(one, CodedResidual)}
    assert made
    assert all(one.codes.format == residual for one in made.values())
    assert {f"{path}.factors" for path in made} == set(layers_of(case.model))
    assert any(f"beside {residual} codes" in note and "of their bytes are gone" in note for note in receipt.notes)
    claimed = {claim for site in receipt.acted for claim in site.claims}
    assert claimed == {"weights.shape", "weights.storage"}
    answers = tiny.logits(case.model, name)
    plain = tiny.logits(tiny.build(name), name)
    assert 0 < (answers - plain).norm() < 0.15 * plain.norm()
    assert generated(copy.deepcopy(case.model), name).shape[1] == tiny.TEXT_TOKENS + 4
    save(case.model, tmp_path / "saved")
    assert torch.equal(tiny.logits(load(tmp_path / "saved"), name), answers)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_codes_beside_factors_are_left_by_compression_which_takes_the_factors() -> None:
    model, manager = tiny.build("qwen3"), ModularOptimizationManager()
    asked = {**SETTINGS, "residual": "int8", "decomposition_ratio": 0.4}
    manager.apply_optimizations(model, ["tensor_decomposition"], parameters={"tensor_decomposition": asked})
    whole = {path: one.codes.weight_int8 for path, one in model.named_modules() if isinstance(one, CodedResidual)}
    manager.apply_optimizations(model, ["tensor_compression"])
    for path, codes in whole.items():
        assert model.get_submodule(path).codes.weight_int8 is codes
        assert isinstance(model.get_submodule(path).factors.out_of, Int8Linear)
    assert tiny.logits(model, "qwen3").isfinite().all()


def test_recorded_steps_serve_codes_beside_factors_and_tell_what_stays_separate() -> None:
    case, manager = Case("qwen3"), ModularOptimizationManager()
    asked = {**SETTINGS, "residual": "int8", "decomposition_ratio": 0.4}
    manager.apply_optimizations(case.model, ["tensor_decomposition"], parameters={"tensor_decomposition": asked})
    tokens = torch.randint(1, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    told = {"output_logits": True, "return_dict_in_generate": True}
    wanted = torch.stack(case.model.generate(tokens, **how, **told).logits)
    manager.apply_optimizations(case.model, ["kernel_fusion"], parameters={"kernel_fusion": {"level": "graph"}})
    found = torch.stack(case.model.generate(tokens, **how, **told).logits)
    engine = engine_of(case.model)
    assert engine is not None
    assert engine.counts.new_tokens == 12
    assert not engine.counts.left
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    notes = manager.get_receipts(case.model)[-1].notes
    assert any("one of its layers is a CodedResidual, and no plain Linear" in note for note in notes)
    manager.remove_optimizations(case.model, ["tensor_decomposition"])
    manager.remove_optimizations(case.model)
    case.check_untouched()


def test_codes_that_leave_no_room_for_factors_are_refused_with_the_way_out() -> None:
    with pytest.raises(NoEffect, match=r"no rank that is a multiple of 8 leaves beside int8 codes 20%"):
        decomposed(tiny.build("llama"), residual="int8", decomposition_ratio=0.8)
    with pytest.raises(InvalidSetting, match="drop one"):
        decomposed(tiny.build("llama"), residual="int8", refit=True)


def test_a_share_of_the_numbers_is_gone_and_matrices_that_matter_may_stay_whole() -> None:
    model = tiny.build("llama")
    receipt = decomposed(model, decomposition_ratio=0.25, align=4)
    chosen = receipt.decision["chosen"]
    assert chosen["allocation"] in ("foretold", "measured")
    assert any("% of their numbers are gone" in note for note in receipt.notes)
    whole = {path for path, rank in chosen["ranks"].items() if rank == 0}
    assert not whole & set(layers_of(model))
    gone = receipt.weight_bytes_before - receipt.weight_bytes_after
    orders = sum(layer.into.order.nbytes / layer.into.readers for layer in layers_of(model).values())
    assert gone + orders >= 0.25 * 4 * receipt.decision["numbers"] - 1e-6


def test_a_plan_tells_the_ranks_without_a_text() -> None:
    model = tiny.build("llama")
    manager = ModularOptimizationManager()
    manager.configure_optimization(
        "tensor_decomposition", OptimizationConfig(name="tensor_decomposition", parameters=SETTINGS)
    )
    (step,) = manager.plan(model, ["tensor_decomposition"]).steps
    assert step.decision["ranks"]["model.layers.0.self_attn.q_proj"] == 40
    assert step.weight_bytes_after < sum(parameter.nbytes for parameter in model.parameters())
    assert any("decided when it is applied" in note for note in step.notes)
    assert any("multiples of 8" in note for note in step.notes)


def test_a_model_that_is_given_no_tokens_goes_by_its_weights_and_says_so() -> None:
    case = Case("plain")
    receipt = decomposed(case.model)
    assert layers_of(case.model)
    assert any("weights alone" in note for note in receipt.notes)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_ordinary_calls_work_or_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = tiny.build("qwen3")
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decomposed(model, form="pivoted")
    answers = tiny.logits(model, "qwen3")
    with pytest.raises(RefusedOnOptimized):
        model.save_pretrained(tmp_path)
    with pytest.raises(RefusedOnOptimized):
        model.load_state_dict(original, strict=False)
    model.load_state_dict(model.state_dict())
    assert torch.equal(tiny.logits(model, "qwen3"), answers)
    twin = copy.deepcopy(model)
    assert torch.equal(tiny.logits(twin, "qwen3"), answers)
    assert tiny.logits(twin.to(torch.bfloat16), "qwen3").dtype is torch.bfloat16
    compiled = torch.compile(model, backend="eager")
    given = tiny.inputs("qwen3", model)
    with torch.no_grad():
        assert torch.equal(compiled(**given, use_cache=False).logits, model(**given, use_cache=False).logits)
    model.train()
    model(**given, labels=given["input_ids"]).loss.backward()
    layers = layers_of(model).values()
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, stride=2), nn.Conv2d(24, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.depthwise(self.second(torch.relu(self.first(images))))


def test_convolutions_become_three_and_come_back(tmp_path: Path) -> None:
    model = Pictures().eval()
    before, images = fingerprint(model), torch.randn(2, 3, 16, 16)
    answers = model(images)
    receipt = decomposed(model, decomposition_ratio=0.4)
    assert [site.path for site in receipt.acted] == ["second"]
    reasons = {skip["paths"][0]: skip["reason"] for skip in receipt.to_json()["skipped"]}
    assert "no core of 8 channels" in reasons["first"]
    assert "32 groups" in reasons["depthwise"]
    assert isinstance(model.second, FactoredConv)
    assert receipt.weight_bytes_after < receipt.weight_bytes_before
    assert model(images).shape == answers.shape
    save(model, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved", model=Pictures())(images), model(images))
    get_optimization_manager().remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_small_matrices_are_left_alone_unless_asked() -> None:
    case = Case("llama")
    with pytest.raises(NoEffect, match="refuse_slower=false takes it"):
        decomposed(case.model, refuse_slower=True)
    case.check_untouched()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"decomposition_ratio": 0.99}, "no rank that is a multiple of 8 leaves 1%"),
        ({"align": 128}, "multiple of 128"),
        ({"targets": ["router"]}, "not among the targets"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(asked: dict[str, Any], told: str) -> None:
    case = Case("llama")
    with pytest.raises(NoEffect, match=told):
        decomposed(case.model, **asked)
    case.check_untouched()


@pytest.mark.parametrize(
    "asked", [{"decomposition_ratio": 1.0}, {"decomposition_ratio": 0.05}, {"form": "tucker"}, {"align": 0}]
)
def test_settings_without_a_sense_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        decomposed(tiny.build("llama"), **asked)


def test_a_loss_above_the_bar_is_refused_and_nothing_was_touched() -> None:
    case = Case("llama")
    with pytest.raises(PlanError, match="max_kl is 1e-09"):
        decomposed(case.model, max_kl=1e-9)
    case.check_untouched()


def test_too_few_tokens_and_no_numbers_are_refused_before_any_edit() -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match="tokens more at least"):
        decomposed(case.model, text=[[1, 2, 3, 4], [5, 6, 7, 8]])
    case.check_untouched()
    broken = tiny.build("llama")
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(InvalidModel, match="NaN or infinity"):
        decomposed(broken)


def test_shared_weights_are_kept_with_the_reason() -> None:
    model = tiny.build("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    receipt = decomposed(model)
    assert {"it shares its weights with another module"} <= {skip["reason"] for skip in receipt.to_json()["skipped"]}
    assert isinstance(model.model.layers[1].mlp.up_proj, nn.Linear)


def test_a_failure_between_two_layers_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    case, write, count = Case("qwen3"), Journal._write, [0]

    def failing(journal: Journal, entry: Any) -> None:
        count[0] += 1
        write(journal, entry)
        if count[0] == 5:
            raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(Journal, "_write", failing)
    with pytest.raises(torch.OutOfMemoryError):
        decomposed(case.model)
    monkeypatch.undo()
    case.check_untouched()


def test_it_learns_while_kernels_serve_the_model() -> None:
    model = tiny.build("qwen3")
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["kernel_fusion", "flash_attention"])
    manager.apply_optimizations(model, ["tensor_decomposition"], parameters={"tensor_decomposition": SETTINGS})
    receipt = next(one for one in manager.get_receipts(model) if one.name == "tensor_decomposition")
    assert receipt.decision["chosen"]["outputs_not_weighed"] is None
    alone = tiny.build("qwen3")
    decomposed(alone)
    torch.testing.assert_close(tiny.logits(model, "qwen3"), tiny.logits(alone, "qwen3"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("later", ["tensor_compression", "kernel_fusion", "structured_pruning", "disk_offloading"])
def test_others_go_with_it_in_either_order(later: str, tmp_path: Path) -> None:
    case = Case("qwen3")
    manager = case.manager
    parameters = {"tensor_decomposition": {**SETTINGS, "calibration": "text"}}
    for first in ("tensor_decomposition", later):
        second = later if first == "tensor_decomposition" else "tensor_decomposition"
        manager.apply_optimizations(case.model, [first], parameters=_only(parameters, first))
        manager.apply_optimizations(case.model, [second], parameters=_only(parameters, second))
        assert layers_of(case.model)
        answers = tiny.logits(case.model, "qwen3")
        assert answers.isfinite().all()
        save(case.model, tmp_path / first)
        assert torch.equal(tiny.logits(load(tmp_path / first), "qwen3"), answers)
        manager.remove_optimizations(case.model, ["tensor_decomposition"])
        assert not layers_of(case.model)
        manager.remove_optimizations(case.model)
        case.check_untouched()


def _only(parameters: dict[str, Any], name: str) -> dict[str, Any] | None:
    return {name: parameters[name]} if name in parameters else None


def test_what_held_out_text_does_not_judge_is_left_alone_under_a_bar() -> None:
    case = Case("plain")
    with pytest.raises(NoEffect, match="no held-out text judges it"):
        decomposed(case.model, max_kl=0.1, text=None)
    case.check_untouched()
    with pytest.raises(NoEffect, match="no held-out text judges it"):
        decomposed(Pictures().eval(), max_kl=0.1, text=None, targets=["unknown"])
    for asked in ({"max_kl": 0.1}, {"refit": True}, {"text": SHORT}):
        with pytest.raises(InvalidSetting, match=f"reads no text, which is what {next(iter(asked))}"):
            decomposed(case.model, calibration="none", **{"text": None, **asked})


def test_no_numbers_beside_the_layers_are_refused_too() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    case = Case("llama")
    for asked in ({}, {"max_kl": 10.0}):
        with pytest.raises(InvalidModel, match="with NaN"):
            decomposed(model, **asked)
    with torch.no_grad():
        case.model.model.layers[1].input_layernorm.weight.zero_()
    assert decomposed(case.model, refit=True, form="plain").decision["chosen"]["held_out_divergence"]["refitted"] < 1


def test_half_precision_holds_factors_however_little_outputs_count() -> None:
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = tiny.build("llama")
        last = model.model.layers[2].mlp
        with torch.no_grad():
            model.lm_head.weight.mul_(1e-4)
            last.up_proj.weight.mul_(1e4)
            last.down_proj.weight.mul_(1e-4)
        receipt = decomposed(model.to(dtype), form="plain", allocation="uniform")
        found[dtype] = receipt.decision["chosen"]["held_out_divergence"]["uniform"]
        assert tiny.logits(model, "llama").isfinite().all()
    assert found[torch.float16] == pytest.approx(found[torch.float32], abs=1e-8)
    wide = tiny.build("llama", dtype=torch.float16)
    with torch.no_grad():
        wide.model.layers[0].mlp.up_proj.weight[0, :2] = torch.tensor([6e4, -6e4])
    assert decomposed(wide, calibration="none", text=None).acted


def test_targets_and_skips_that_mean_nothing_are_told() -> None:
    receipt = decomposed(tiny.build("llama"), targets=["mlp", "layers.7"], skip=["*.attn", "*.0.mlp.up_proj"])
    assert "nothing in this model is meant by 'layers.7', '*.attn'." in receipt.notes
