"""Ordinary calls on an optimized model: each works, or is refused with the reason and the way out."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidModel, ModelBusy, ModelDrift, RefusedOnOptimized
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.sweep import TOGETHER, Case

PEFT_ASKS_THE_OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WEIGHTS = "tensor_compression"
DISPATCH = "flash_attention"


def optimized(*names: str, model_name: str = "llama") -> Case:
    case = Case(model_name)
    assert case.apply(*(names or TOGETHER))
    return case


def test_save_pretrained_is_refused_where_weights_changed_and_works_where_not(tmp_path: Path) -> None:
    with pytest.raises(RefusedOnOptimized, match=r"inference_pio\.save"):
        optimized(WEIGHTS).model.save_pretrained(tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    case = optimized(DISPATCH)
    case.model.save_pretrained(tmp_path / "whole")
    again = type(case.model).from_pretrained(tmp_path / "whole")
    assert torch.equal(tiny.logits(again, "llama"), case.logits)


@pytest.mark.parametrize("model_name", ["llama", "qwen3_vl"])
def test_what_the_librarys_save_notes_in_the_configuration_is_no_drift(model_name: str, tmp_path: Path) -> None:
    case = optimized(DISPATCH, model_name=model_name)
    assert case.model.config.architectures is None
    case.model.save_pretrained(tmp_path / "whole")
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (saved["architectures"], saved["dtype"]) == ([type(case.model).__name__], "float32")
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_save_hides_no_edit_of_the_users(tmp_path: Path) -> None:
    case = optimized(DISPATCH)
    case.model.config.use_cache = False
    case.model.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["use_cache"] is False
    with pytest.raises(ModelDrift, match=r"config\.use_cache"):
        case.manager.remove_optimizations(case.model)


def test_a_save_that_fails_leaves_no_drift(tmp_path: Path) -> None:
    case = optimized(DISPATCH)
    with pytest.raises(OSError, match="full"):
        case.model.save_pretrained(tmp_path / "whole", state_dict=FullDisk())
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


class FullDisk(dict[str, Any]):
    def copy(self) -> Any:
        raise OSError("the disk is full")

    items = keys = values = copy


def test_state_dict_goes_out_and_in() -> None:
    case = optimized()
    before = tiny.logits(case.model, "llama")
    state = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.model.load_state_dict(state)
    assert torch.equal(tiny.logits(case.model, "llama"), before)


@pytest.mark.parametrize("strict", [True, False])
def test_an_original_state_dict_is_refused_by_compressed_weights_before_anything_is_loaded(strict: bool) -> None:
    case = optimized(WEIGHTS)
    before = fingerprint(case.model)
    with pytest.raises(RefusedOnOptimized, match="reset_model_optimizations"):
        case.model.load_state_dict(tiny.build("llama", seed=3).state_dict(), strict=strict)
    assert before.differences(fingerprint(case.model)) == []


def test_deepcopy_works_and_the_copy_knows_that_it_has_no_way_back() -> None:
    case = optimized()
    twin = copy.deepcopy(case.model)
    assert torch.equal(tiny.logits(twin, "llama"), tiny.logits(case.model, "llama"))
    assert twin.forward.__self__ is twin
    status = case.manager.get_optimization_status(twin)
    assert status["reversible"].startswith("no: this is a copy")
    assert sorted(status["applied"]) == sorted(TOGETHER)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
    tiny.logits(twin, "llama")


def test_a_copy_of_a_reset_model_is_an_ordinary_model() -> None:
    case = optimized()
    case.manager.remove_optimizations(case.model)
    twin = copy.deepcopy(case.model)
    assert torch.equal(tiny.logits(twin, "llama"), case.logits)
    assert case.manager.get_optimization_status(twin)["applied"] == []


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_pickling_is_refused_with_the_way_out(how: str) -> None:
    model = optimized().model
    with pytest.raises(RefusedOnOptimized, match=r"inference_pio\.save"):
        pickle.dumps(model) if how == "pickle" else torch.save(model, io.BytesIO())


@pytest.mark.parametrize("call", ["half", "bfloat16", "double"])
def test_casting_is_refused_and_nothing_is_cast(call: str) -> None:
    case = optimized()
    before = fingerprint(case.model)
    with pytest.raises(RefusedOnOptimized, match="reset_model_optimizations"):
        getattr(case.model, call)()
    assert before.differences(fingerprint(case.model)) == []


def test_moving_to_another_device_is_refused_and_to_its_own_is_not() -> None:
    case = optimized()
    with pytest.raises(RefusedOnOptimized):
        case.model.to("meta")
    assert case.model.to("cpu") is case.model
    assert case.model.float() is case.model
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_torch_compile_works_and_follows_a_reset() -> None:
    case = optimized()
    given = tiny.inputs("llama", case.model)
    expected = case.model(**given).logits
    compiled = torch.compile(case.model, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given).logits, expected)
        case.manager.remove_optimizations(case.model)
        torch.testing.assert_close(compiled(**given).logits, case.model(**given).logits)
    torch.compiler.reset()
    with pytest.raises(InvalidModel, match="_orig_mod"):
        case.manager.apply_optimizations(compiled, [DISPATCH])


def test_train_and_backward_work_and_the_mode_survives_the_undo() -> None:
    case = optimized()
    case.model.train()
    case.model(**tiny.inputs("llama", case.model)).logits.float().pow(2).mean().backward()
    assert case.model.get_input_embeddings().weight.grad.abs().sum() > 0
    case.manager.remove_optimizations(case.model)
    assert all(module.training for module in case.model.modules())
    case.model.eval()
    case.model.zero_grad()
    case.check_untouched()


@PEFT_ASKS_THE_OLD_NAME
def test_peft_attaches_to_a_dispatched_model_and_detaches_again() -> None:
    peft = pytest.importorskip("peft", reason="peft is a development extra")
    case = optimized(DISPATCH)
    config = peft.LoraConfig(target_modules=["q_proj"], r=4)
    adapted = peft.get_peft_model(case.model, config)
    tiny.logits(case.model, "llama")
    assert adapted.unload() is case.model
    case.manager.remove_optimizations(case.model)
    assert torch.equal(tiny.logits(case.model, "llama"), case.logits)


@PEFT_ASKS_THE_OLD_NAME
def test_peft_refuses_compressed_layers_by_name() -> None:
    peft = pytest.importorskip("peft", reason="peft is a development extra")
    with pytest.raises(ValueError, match="Int8Linear"):
        peft.get_peft_model(optimized(WEIGHTS).model, peft.LoraConfig(target_modules=["q_proj"], r=4))


@PEFT_ASKS_THE_OLD_NAME
def test_adapters_that_are_there_already_are_kept_and_a_changed_base_is_told() -> None:
    peft = pytest.importorskip("peft", reason="peft is a development extra")
    case = Case("llama")
    adapted = peft.get_peft_model(case.model, peft.LoraConfig(target_modules=["q_proj"], r=4))
    case.manager.apply_optimizations(case.model, [WEIGHTS])
    skipped = case.manager.get_receipts(case.model)[0].to_json()["skipped"]
    assert any("lora_A" in path for skips in skipped for path in skips["paths"])
    adapted.unload()
    with pytest.raises(ModelDrift, match="taken out of the model"):
        case.manager.remove_optimizations(case.model)


def test_a_wrapped_module_is_drift_and_discard_gives_the_original_back() -> None:
    case = optimized(WEIGHTS)
    mlp = case.model.model.layers[0].mlp
    mlp.up_proj = nn.Sequential(mlp.up_proj)
    before = fingerprint(case.model)
    with pytest.raises(ModelDrift, match=r"layers\.0\.mlp\.up_proj"):
        case.manager.remove_optimizations(case.model)
    assert before.differences(fingerprint(case.model)) == []
    case.manager.remove_optimizations(case.model, on_drift="discard")
    case.check_untouched()


def test_an_edited_config_is_drift() -> None:
    case = optimized(DISPATCH)
    case.model.config.use_cache = False
    with pytest.raises(ModelDrift, match=r"config\.use_cache"):
        case.manager.remove_optimizations(case.model)
    case.model.config.use_cache = True
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_an_edit_from_inside_generate_is_refused_at_once_and_the_call_goes_on() -> None:
    case = optimized()
    told: list[ModelBusy] = []

    def meddle(*_: object) -> None:
        with pytest.raises(ModelBusy, match="inside the model's own forward") as caught:
            case.manager.remove_optimizations(case.model)
        told.append(caught.value)

    handle = case.model.model.layers[0].register_forward_hook(meddle)
    tiny.generate(case.model, "llama", new_tokens=2)
    handle.remove()
    assert told
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_guards_keep_names_and_signatures() -> None:
    plain, guarded = tiny.build("llama"), optimized().model
    for name in ("forward", "generate", "save_pretrained"):
        assert inspect.signature(getattr(guarded, name)) == inspect.signature(getattr(plain, name))
        assert getattr(guarded, name).__name__ == name


def test_generate_gives_the_tokens_of_the_library() -> None:
    case = Case("llama")
    expected = tiny.generate(case.model, "llama", new_tokens=8)
    case.apply(DISPATCH)
    assert torch.equal(tiny.generate(case.model, "llama", new_tokens=8), expected)


def test_no_guard_stands_on_a_model_that_has_nothing_applied() -> None:
    case = optimized()
    ModularOptimizationManager().remove_optimizations(case.model)
    assert not {"forward", "generate", "save_pretrained", "load_state_dict", "_apply"} & set(vars(case.model))


def test_a_forward_of_the_users_own_follows_a_deepcopy() -> None:
    case = Case("llama")
    calls: list[nn.Module] = []

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return type(self).forward(self, *args, **kwargs)

    case.model.forward = types.MethodType(forward, case.model)
    case.apply(*TOGETHER)
    twin = copy.deepcopy(case.model)
    twin(**tiny.inputs("llama", twin))
    assert calls == [twin]


def test_the_first_edit_from_inside_generate_is_refused_at_once_too() -> None:
    case = Case("llama")
    told: list[str] = []

    def meddle(*_: object) -> None:
        for edited in (case.model, case.model.model):  # the model, or the part of it that is computing
            with pytest.raises(ModelBusy, match="inside the model's own forward") as caught:
                case.manager.apply_optimizations(edited, [WEIGHTS])
            told.append(str(caught.value))

    handle = case.model.model.layers[0].register_forward_hook(meddle)
    tiny.generate(case.model, "llama", new_tokens=2)
    handle.remove()
    assert len(told) == 4
    case.check_untouched()
    assert case.apply(*TOGETHER)
