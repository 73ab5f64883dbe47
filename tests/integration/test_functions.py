from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from inference_pio.configuration import ModelFamily, ModelOptimizationConfig
from inference_pio.contract.config import OptimizationConfig
from inference_pio.errors import InvalidModel, InvalidSetting, NoEffect, NothingApplied, UnknownName
from inference_pio.integration import (
    apply_glm_optimizations,
    apply_model_family_optimizations,
    apply_optimizations_by_config,
    apply_qwen_optimizations,
    get_model_optimization_status,
    get_supported_optimizations,
    reset_model_optimizations,
    update_model_optimization,
)
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

BALANCED = ["tensor_compression", "flash_attention", "kernel_fusion"]
LOSSLESS = ["flash_attention", "kernel_fusion"]


def applied(model: torch.nn.Module) -> list[str]:
    return get_optimization_manager().get_model_optimizations(model)


@pytest.mark.parametrize(
    ("function", "name"), [(apply_glm_optimizations, "glm4_moe_lite"), (apply_qwen_optimizations, "qwen3_moe")]
)
def test_a_profile_is_applied_in_place_and_taken_back_exactly(function: Any, name: str) -> None:
    model = tiny.build(name)
    before, answers = fingerprint(model), tiny.logits(model, name)
    assert function(model) is model
    assert applied(model) == BALANCED
    assert get_model_optimization_status(model)["profile"] == "balanced"
    assert reset_model_optimizations(model) is model
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, name), answers)


def test_a_profile_sets_the_target() -> None:
    model = tiny.build("qwen3")
    apply_qwen_optimizations(model, profile_name="balanced")
    apply_qwen_optimizations(model, profile_name="lossless")
    assert applied(model) == LOSSLESS


def test_a_model_of_another_family_is_optimized_with_a_word_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "inference_pio"):
        apply_glm_optimizations(tiny.build("llama"))
    assert "this LlamaForCausalLM is of the LLAMA family, and it is optimized with the defaults of GLM" in caplog.text


@pytest.mark.parametrize("name", ["glm4_moe", "gpt2", "plain"])
def test_models_of_the_family_and_of_none_leave_no_word(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "inference_pio"):
        apply_glm_optimizations(tiny.build(name))
    assert caplog.text == ""


def test_a_family_may_be_given_by_name_which_is_a_legacy_form() -> None:
    model = tiny.build("qwen3")
    with pytest.warns(DeprecationWarning, match=r"optimize\(model, 'lossless', family='qwen'\)") as caught:
        apply_model_family_optimizations(model, "qwen", "lossless")
    assert [one.filename for one in caught] == [__file__]
    assert applied(model) == LOSSLESS


@pytest.mark.parametrize(
    ("family", "profile", "told"),
    [
        ("qwenn", "balanced", "unknown family 'qwenn'"),
        ("qwen", "balance", "unknown profile 'balance'"),
    ],
)
def test_unknown_names_are_told_and_nothing_is_touched(family: str, profile: str, told: str) -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    with pytest.raises(UnknownName, match=told):
        apply_model_family_optimizations(model, family, profile)
    assert before.differences(fingerprint(model)) == []


def test_a_profile_of_which_nothing_applies_raises() -> None:
    with pytest.raises(NothingApplied, match="lossless"):
        apply_glm_optimizations(tiny.build("plain"), "lossless")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InvalidModel, match=r"must be a torch nn\.Module"):
        apply_glm_optimizations("gpt2")


# ---------------------------------------------------------------------- by config


def test_a_family_config_is_applied_whole() -> None:
    members = [{"name": "flash_attention"}, {"name": "tensor_compression", "enabled": False}]
    config = ModelOptimizationConfig(family=ModelFamily.GLM, optimizations=members)
    assert applied(apply_optimizations_by_config(tiny.build("glm4_moe"), config)) == ["flash_attention"]


def test_a_family_config_of_which_nothing_applies_raises() -> None:
    config = ModelOptimizationConfig(family="glm", optimizations=[{"name": "flash_attention"}])
    with pytest.raises(NothingApplied, match="defaults of the family 'glm'"):
        apply_optimizations_by_config(tiny.build("plain"), config)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_list_or_dict_of_configs_sets_the_target(as_dict: bool) -> None:
    model = apply_qwen_optimizations(tiny.build("qwen3"))
    configs = [OptimizationConfig(name="flash_attention"), OptimizationConfig(name="tensor_compression", enabled=False)]
    given = {config.name: config for config in configs} if as_dict else configs
    assert applied(apply_optimizations_by_config(model, given)) == ["flash_attention"]


def test_configs_in_a_list_are_orders() -> None:
    with pytest.raises(NoEffect, match="flash_attention"):
        apply_optimizations_by_config(tiny.build("plain"), [OptimizationConfig(name="flash_attention")])


FLASH = OptimizationConfig(name="flash_attention")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (FLASH, "a list or dict of OptimizationConfig"),
        ("flash_attention", "a list or dict of OptimizationConfig"),
        (None, "a list or dict of OptimizationConfig"),
        (["flash_attention"], "'flash_attention' is none"),
        ({"flash_attention": {"enabled": True}}, "is none"),
        ({"flash": FLASH}, "was given for 'flash'"),
        ([FLASH, FLASH], "flash_attention is given twice"),
    ],
)
def test_what_is_no_config_is_told(config: Any, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        apply_optimizations_by_config(tiny.build("llama"), config)


def test_a_family_config_may_be_the_mapping_that_its_file_holds() -> None:
    document = {"family": "glm", "optimizations": ["flash_attention"]}
    assert applied(apply_optimizations_by_config(tiny.build("glm4_moe"), document)) == ["flash_attention"]
    with pytest.raises(UnknownName, match="Did you mean 'optimizations'"):
        apply_optimizations_by_config(tiny.build("glm4_moe"), {"family": "glm", "optimisations": []})


# ---------------------------------------------------------------------- legacy forms


class OldConfig:
    use_flash_attention_2 = True
    use_snn_conversion = False


LEGACY: dict[str, Any] = {
    "a document": {"optimizations": [{"name": "flash_attention"}]},
    "flags": {"use_flash_attention_2": True, "use_quantization": False},
    "an object": OldConfig(),
}


@pytest.mark.parametrize("form", LEGACY)
def test_a_legacy_config_is_applied_with_one_warning_that_shows_the_new_spelling(form: str) -> None:
    model = tiny.build("llama")
    with pytest.warns(DeprecationWarning, match="Write it so") as caught:
        assert apply_optimizations_by_config(model, LEGACY[form]) is model
    (one,) = caught
    assert one.filename == __file__
    spelling = str(one.message).split("Write it so:\n")[1].splitlines()[0]
    assert applied(model) == ["flash_attention"]
    again = tiny.build("llama")
    exec(spelling, {
        "model": again, "apply_optimizations_by_config": apply_optimizations_by_config,
        "ModelOptimizationConfig": ModelOptimizationConfig,
    })  # fmt: skip
    assert applied(again) == applied(model)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: apply_glm_optimizations(model, use_flash_attention_2=True),
        lambda model: apply_qwen_optimizations(model, use_flash_attention_2=True, use_quantization=False),
        lambda model: apply_model_family_optimizations(model, "llama", use_flash_attention_2=True),
        lambda model: apply_optimizations_by_config(model, use_flash_attention_2=True),
    ],
)
def test_flags_as_keyword_arguments_give_one_warning_and_what_they_ask_for(call: Any) -> None:
    model = tiny.build("llama")
    with pytest.warns(DeprecationWarning, match="ModelOptimizationConfig") as caught:
        call(model)
    assert [one.filename for one in caught] == [__file__]
    assert applied(model) == ["flash_attention"]


def test_what_is_not_carried_over_is_told_in_the_warning() -> None:
    model = tiny.build("llama")
    flags = {"use_flash_attention_2": True, "quantization_bits": 3}
    with pytest.warns(DeprecationWarning, match="Not carried over: quantization_bits = 3"):
        apply_optimizations_by_config(model, flags)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"use_quantization": "true"}, "write it without quotes"),
        ({"use_quantization": True, "enable_tensor_compression": False}, "contradict each other"),
        ({"use_quantisation": True}, "Did you mean 'use_quantization'"),
        ({"optimizations": [{"name": "flash_atention"}]}, "Did you mean 'flash_attention'"),
    ],
)
def test_wrong_legacy_forms_are_told_without_a_warning_and_touch_nothing(wrong: Any, told: str) -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    with pytest.raises((InvalidSetting, UnknownName), match=told):
        apply_optimizations_by_config(model, wrong)
    assert before.differences(fingerprint(model)) == []


def test_flags_do_not_stand_beside_a_profile_or_a_config() -> None:
    with pytest.raises(InvalidSetting, match="cannot stand beside 'balanced'"):
        apply_glm_optimizations(tiny.build("llama"), "balanced", use_quantization=True)
    with pytest.raises(InvalidSetting, match="cannot stand beside"):
        apply_optimizations_by_config(tiny.build("llama"), {}, use_quantization=True)


# ---------------------------------------------------------------------- one at a time


def test_one_optimization_is_switched_off_and_on_while_others_stay() -> None:
    model = apply_qwen_optimizations(tiny.build("qwen3"))
    update_model_optimization(model, "tensor_compression", enabled=False)
    assert applied(model) == LOSSLESS
    update_model_optimization(model, "tensor_compression", enabled=True, parameters={"format": "int8"})
    assert sorted(applied(model)) == sorted(BALANCED)


def test_parameters_reach_the_receipt() -> None:
    model = tiny.build("llama")
    update_model_optimization(model, "flash_attention", enabled=True, parameters={"use_triton": True})
    (receipt,) = get_optimization_manager().get_receipts(model)
    assert receipt.parameters["use_triton"] is True


def test_switching_off_what_is_off_is_told_in_the_log_and_touches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    with caplog.at_level(logging.WARNING, "inference_pio"):
        update_model_optimization(model, "flash_attention", enabled=False)
    assert "flash_attention is not applied to this model" in caplog.text
    assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_a_name_that_is_not_registered_is_told(enabled: bool) -> None:
    with pytest.raises(UnknownName, match="unknown optimization 'flash_atention'"):
        update_model_optimization(tiny.build("llama"), "flash_atention", enabled=enabled)


def test_switching_on_is_an_order() -> None:
    with pytest.raises(NoEffect, match="flash_attention"):
        update_model_optimization(tiny.build("plain"), "flash_attention", enabled=True)


def test_contradictions_and_wrong_types_are_told() -> None:
    with pytest.raises(InvalidSetting, match="leave them out"):
        update_model_optimization(tiny.build("llama"), "flash_attention", False, {"use_triton": True})
    with pytest.raises(InvalidSetting, match="True or False"):
        update_model_optimization(tiny.build("llama"), "flash_attention", "no")
    with pytest.raises(UnknownName, match="use_triton"):
        update_model_optimization(tiny.build("llama"), "flash_attention", True, {"triton": True})


# ---------------------------------------------------------------------- what there is


def test_supported_optimizations_are_those_registered_or_those_of_a_family() -> None:
    assert get_supported_optimizations() == get_optimization_manager().get_available_optimizations()
    assert get_supported_optimizations(ModelFamily.GLM) == ["flash_attention", "kernel_fusion", "tensor_compression"]
    assert get_supported_optimizations("llama") == []
    with pytest.raises(UnknownName, match="unknown family"):
        get_supported_optimizations("glmm")


@pytest.mark.parametrize("nothing", [[], {}])
def test_a_configuration_of_nothing_says_that_it_takes_everything_back(
    nothing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.build("llama")
    apply_optimizations_by_config(model, [OptimizationConfig(name="flash_attention")])
    caplog.clear()
    apply_optimizations_by_config(model, nothing)
    assert "enables nothing" in caplog.text
    assert get_model_optimization_status(model)["applied_optimizations"] == []
