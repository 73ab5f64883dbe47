"""flash_attention: exact, chosen by name, never the plain kernel by accident."""

from __future__ import annotations

import pytest
import torch

from inference_pio.anatomy.walk import attention_modules
from inference_pio.errors import InvalidSetting, NoEffect
from inference_pio.optimizations.attention.flash_attention import choose_backend, self_test
from tests import tiny
from tests.sweep import Case

HF = [name for name in tiny.TINY if name != "plain"]


@pytest.mark.parametrize("name", HF)
@pytest.mark.parametrize("loaded_with", ["eager", "sdpa"])
def test_logits_are_those_of_the_library_up_to_rounding(name: str, loaded_with: str) -> None:
    case = Case(name)
    case.model.set_attn_implementation(loaded_with)
    expected = tiny.logits(case.model, name)
    case.manager.apply_optimizations(case.model, ["flash_attention"])
    torch.testing.assert_close(tiny.logits(case.model, name), expected, rtol=1e-4, atol=1e-4)
    served = {module.config._attn_implementation for _, module, _ in attention_modules(case.model)}
    assert served == {"inference_pio_exact_fused_fused"}
    case.manager.remove_optimizations(case.model)
    assert {module.config._attn_implementation for _, module, _ in attention_modules(case.model)} == {loaded_with}


@pytest.mark.parametrize("name", HF)
def test_padded_batches_are_masked(name: str) -> None:
    case = Case(name)
    given = tiny.inputs(name, case.model)
    given["attention_mask"][0, :3] = 0
    expected = case.model(**given).logits[:, -1]
    case.apply("flash_attention")
    torch.testing.assert_close(case.model(**given).logits[:, -1], expected, rtol=1e-4, atol=1e-4)


def test_vision_attention_is_served_too() -> None:
    case = Case("qwen3_vl")
    case.apply("flash_attention")
    roles = {site.role for site in case.manager.get_receipts(case.model)[0].acted}
    assert len(roles) == 2
    assert case.model.config.vision_config._attn_implementation.startswith("inference_pio")


def test_the_receipt_names_the_backend_and_answers_the_preference() -> None:
    case = Case("llama")
    case.manager.apply_optimizations(
        case.model, ["flash_attention"], parameters={"flash_attention": {"use_triton": True}}
    )
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.backend == "fused"
    assert any("use_triton is a preference" in note for note in receipt.notes)


@pytest.mark.parametrize("backend", ["cudnn", "flash", "efficient"])
def test_an_order_that_this_device_cannot_keep_raises_and_touches_nothing(backend: str) -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match="NVIDIA GPU"):
        case.manager.apply_optimizations(
            case.model, ["flash_attention"], parameters={"flash_attention": {"backend": backend}}
        )
    case.check_untouched()


def test_a_preference_and_an_order_contradict_each_other() -> None:
    with pytest.raises(InvalidSetting, match="contradict"):
        Case("llama").manager.apply_optimizations(
            tiny.build("llama"), ["flash_attention"],
            parameters={"flash_attention": {"use_triton": True, "backend": "flash"}},
        )  # fmt: skip


def test_a_model_that_runs_the_flash_attention_package_is_left_alone() -> None:
    case = Case("llama")
    case.model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(NoEffect, match="already runs flash_attention_2"):
        case.manager.apply_optimizations(case.model, ["flash_attention"])


def test_two_models_with_different_choices_do_not_meet() -> None:
    one, other = Case("llama"), Case("llama")
    one.apply("flash_attention")
    assert torch.equal(tiny.logits(other.model, "llama"), other.logits)
    other.check_untouched()


def test_the_self_test_passes_on_this_machine() -> None:
    device = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        self_test(choose_backend(device, "auto"), device, dtype)


def test_the_self_test_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.attention import KERNELS

    right = KERNELS["fused"]
    monkeypatch.setitem(KERNELS, "fused", lambda *given, **how: right(*given, **how) * 1.1)
    with pytest.raises(InvalidSetting, match="off by"):
        self_test(choose_backend(torch.device("cpu"), "auto"), torch.device("cpu"), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "flash", "efficient", "cudnn"])
def test_gpu_backends_give_the_library_logits(backend: str) -> None:
    case = Case("qwen3", torch.bfloat16)
    model = case.model.cuda()
    expected = tiny.logits(model, "qwen3")
    case.manager.apply_optimizations(model, ["flash_attention"], parameters={"flash_attention": {"backend": backend}})
    torch.testing.assert_close(tiny.logits(model, "qwen3"), expected, rtol=5e-2, atol=5e-2)
