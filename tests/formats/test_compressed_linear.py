"""Compressed linear layers stand where a Linear or a Conv1D stood, in every format."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.walk import linears, parent_of
from inference_pio.errors import InvalidModel
from inference_pio.formats.compressed_linear import CompressedLinear
from tests import tiny
from tests.formats.help import EACH_FORMAT, FORMATS, GROUP, STEP, linear, linear_of, seeded

KEPT = ("head", "router", "vision", "adapter")


def compress_linears(model: nn.Module, name: str) -> nn.Module:
    for path, module, role in list(linears(model)):
        kind = type(linear_of(name, linear()))
        columns = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
        if role not in KEPT and not kind.why_not(columns, GROUP):
            parent, child = parent_of(model, path)
            setattr(parent, child, linear_of(name, module))
    return model


@EACH_FORMAT
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (96, 7), (32, 1), (64, 128)])
def test_it_computes_what_its_codes_stand_for(name: str, inputs: int, outputs: int, bias: bool) -> None:
    original = linear(inputs, outputs, bias)
    layer = linear_of(name, original)
    x = seeded(3, 5, inputs)
    want = torch.nn.functional.linear(x, layer.dequantize(), original.bias)
    assert (layer(x) - want).abs().max() < 0.02
    assert (layer.dequantize() - original.weight).abs().max() <= STEP[name] * original.weight.abs().max()
    assert (layer.in_features, layer.out_features) == (inputs, outputs)


@EACH_FORMAT
def test_conv1d_is_turned_around(name: str) -> None:
    original = Conv1D(48, 64)
    layer = linear_of(name, original)
    assert layer.held("weight")[0].is_contiguous()
    assert (layer.dequantize() - original.weight.t()).abs().max() < STEP[name] * original.weight.abs().max()
    assert layer.bias is original.bias


@EACH_FORMAT
def test_the_bias_is_the_same_object_and_the_mode_is_kept(name: str) -> None:
    original = linear().eval()
    layer = linear_of(name, original)
    assert layer.bias is original.bias
    assert not layer.training
    assert linear_of(name, linear(bias=False)).bias is None


@EACH_FORMAT
def test_codes_may_be_made_by_another_rounding(name: str) -> None:
    original = linear()
    kind = type(linear_of(name, original))
    doubled = kind.from_linear(original, GROUP, lambda weight: kind.quantize(2 * weight, GROUP))
    assert torch.equal(doubled.dequantize(), 2 * linear_of(name, original).dequantize())


@EACH_FORMAT
def test_other_modules_are_refused(name: str) -> None:
    with pytest.raises(InvalidModel, match=f"Conv2d has no {name} form"):
        linear_of(name, nn.Conv2d(1, 1, 1))


@EACH_FORMAT
@pytest.mark.parametrize("make", [lambda: nn.Linear(32, 4, device="meta"), lambda: Conv1D(4, 32).to("meta")])
def test_on_the_meta_device_it_has_shapes_and_no_values(name: str, make) -> None:
    layer = linear_of(name, make())
    assert all(tensor.is_meta for tensor in (*layer.held("weight"), layer.bias))
    assert layer(torch.empty(2, 32, device="meta")).shape == (2, 4)


@EACH_FORMAT
@pytest.mark.parametrize("model_name", [name for name in tiny.TINY if name != "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_compressed_linears_answers_almost_alike(name: str, model_name: str, dtype: torch.dtype) -> None:
    plain = tiny.logits(tiny.build(model_name, dtype), model_name).float().log_softmax(-1)
    model = compress_linears(tiny.build(model_name, dtype), name)
    assert any(isinstance(module, CompressedLinear) for module in model.modules())
    logits = tiny.logits(model, model_name)
    assert logits.dtype is dtype
    divergence = (plain.exp() * (plain - logits.float().log_softmax(-1))).sum(-1)
    assert divergence.mean() < {"int8": 1e-3, "fp8": 1e-2, "int4": 0.05}[name]
    plainly = tiny.generate(tiny.build(model_name, dtype), model_name)
    assert tiny.generate(model, model_name).shape == plainly.shape


@EACH_FORMAT
@pytest.mark.parametrize("rows", [3, 40])
def test_compiled_it_computes_the_same_with_and_without_gradients(name: str, rows: int) -> None:
    torch.compiler.reset()
    layer, x = linear_of(name, linear(64, 64)), seeded(rows, 64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    for module, given in ((compiled, x.clone().requires_grad_()), (layer, x.clone().requires_grad_())):
        module(given).sum().backward()
        torch.testing.assert_close(given.grad, layer.dequantize().sum(0).expand(rows, 64), rtol=1e-4, atol=1e-4)


@pytest.fixture(params=FORMATS)
def adapted(request: pytest.FixtureRequest) -> nn.Module:
    """A model with LoRA on two layers of each block; what the adapters wrap is compressed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
        model = get_peft_model(tiny.build("qwen3"), LoraConfig(target_modules=["q_proj", "down_proj"]))
    return compress_linears(model, request.param)


def test_the_codes_carry_gradients_to_adapters_and_take_none(adapted: nn.Module) -> None:
    model = adapted
    given = tiny.inputs("qwen3", model)
    model(**given, labels=given["input_ids"]).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 3
    assert sum(bool(parameter.grad.abs().sum() > 0) for parameter in trained) == 2 * 3  # lora_B starts at zero


def test_an_adapter_is_not_merged_into_codes(adapted: nn.Module) -> None:
    before = tiny.logits(adapted, "qwen3")
    with pytest.raises(AttributeError, match=r"its weights are (int8|int4|fp8) codes"):
        adapted.merge_adapter()
    assert torch.equal(tiny.logits(adapted, "qwen3"), before)


@EACH_FORMAT
def test_it_prints_as_a_linear_does(name: str) -> None:
    shown = "in_features=64, out_features=48, bias=True" + (", group=32" if name == "int4" else "")
    assert repr(linear_of(name, linear())) == f"{name.capitalize()}Linear({shown})"
