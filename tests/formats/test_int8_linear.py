"""Int8Linear stands where a Linear or a Conv1D stood."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.walk import linears, parent_of
from inference_pio.errors import InvalidModel
from inference_pio.formats.int8_linear import Int8Linear
from inference_pio.kernels.int8 import naive_int8_linear
from tests import tiny

KEPT = ("head", "router", "vision", "adapter")


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def linear(inputs: int = 64, outputs: int = 48, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs, bias=bias)


def compress_linears(model: nn.Module) -> nn.Module:
    for path, module, role in list(linears(model)):
        if role not in KEPT:
            parent, name = parent_of(model, path)
            setattr(parent, name, Int8Linear.from_linear(module))
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (100, 7), (1, 1)])
def test_it_computes_what_its_codes_stand_for(inputs: int, outputs: int, bias: bool) -> None:
    original = linear(inputs, outputs, bias)
    layer = Int8Linear.from_linear(original)
    x = seeded(3, 5, inputs)
    want = naive_int8_linear(x, layer.weight_int8, layer.weight_scale, original.bias)
    assert (layer(x) - want).abs().max() < 0.02
    assert (layer(x) - original(x)).abs().max() < 0.05
    assert (layer.in_features, layer.out_features) == (inputs, outputs)


def test_conv1d_is_turned_around() -> None:
    original = Conv1D(48, 64)
    layer = Int8Linear.from_linear(original)
    assert layer.weight_int8.shape == (48, 64)
    assert layer.weight_int8.is_contiguous()
    assert (layer.dequantize() - original.weight.t()).abs().max() < 0.001
    assert layer.bias is original.bias


def test_the_bias_is_the_same_object_and_the_mode_is_kept() -> None:
    original = linear().eval()
    layer = Int8Linear.from_linear(original)
    assert layer.bias is original.bias
    assert not layer.training
    assert Int8Linear.from_linear(linear(bias=False)).bias is None


def test_other_modules_are_refused() -> None:
    with pytest.raises(InvalidModel, match="Conv2d has no int8 form"):
        Int8Linear.from_linear(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4, device="meta"), lambda: Conv1D(4, 6).to("meta")])
def test_on_the_meta_device_it_has_shapes_and_no_values(make) -> None:
    layer = Int8Linear.from_linear(make())
    assert all(tensor.is_meta for tensor in (layer.weight_int8, layer.weight_scale, layer.bias))
    assert layer(torch.empty(2, 6, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("name", [name for name in tiny.TINY if name != "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_int8_linears_answers_almost_alike(name: str, dtype: torch.dtype) -> None:
    plain = tiny.logits(tiny.build(name, dtype), name).float().log_softmax(-1)
    model = compress_linears(tiny.build(name, dtype))
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    logits = tiny.logits(model, name)
    assert logits.dtype is dtype
    divergence = (plain.exp() * (plain - logits.float().log_softmax(-1))).sum(-1)
    assert divergence.mean() < 1e-3
    assert tiny.generate(model, name).shape == tiny.generate(tiny.build(name, dtype), name).shape


def test_its_state_comes_back_in_another_layer() -> None:
    layer, other = Int8Linear.from_linear(linear()), Int8Linear.from_linear(nn.Linear(64, 48))
    assert list(layer.state_dict()) == ["bias", "weight_int8", "weight_scale"]
    assert other.load_state_dict(layer.state_dict()).missing_keys == []
    assert torch.equal(layer(seeded(3, 64)), other(seeded(3, 64)))


def test_copies_and_pickles_compute_the_same() -> None:
    layer, x = Int8Linear.from_linear(linear()), seeded(3, 64)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert twin.weight_int8.data_ptr() != layer.weight_int8.data_ptr()


@pytest.mark.parametrize("rows", [3, 40])
def test_compiled_it_computes_the_same_with_and_without_gradients(rows: int) -> None:
    torch.compiler.reset()
    layer, x = Int8Linear.from_linear(linear()), seeded(rows, 64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    for module, given in ((compiled, x.clone().requires_grad_()), (layer, x.clone().requires_grad_())):
        module(given).sum().backward()
        torch.testing.assert_close(given.grad, layer.dequantize().sum(0).expand(rows, 64))


@pytest.fixture
def adapted() -> nn.Module:
    """A model with LoRA on two layers of each block; what the adapters wrap is in int8."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
        model = get_peft_model(tiny.build("qwen3"), LoraConfig(target_modules=["q_proj", "down_proj"]))
    return compress_linears(model)


def test_the_codes_carry_gradients_to_adapters_and_take_none(adapted: nn.Module) -> None:
    model = adapted
    given = tiny.inputs("qwen3", model)
    model(**given, labels=given["input_ids"]).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 3
    assert sum(bool(parameter.grad.abs().sum() > 0) for parameter in trained) == 2 * 3  # lora_B starts at zero


def test_an_adapter_is_not_merged_into_codes(adapted: nn.Module) -> None:
    before = tiny.logits(adapted, "qwen3")
    with pytest.raises(AttributeError, match="its weights are int8 codes"):
        adapted.merge_adapter()
    assert torch.equal(tiny.logits(adapted, "qwen3"), before)


def test_it_prints_as_a_linear_does() -> None:
    assert repr(Int8Linear.from_linear(linear())) == "Int8Linear(in_features=64, out_features=48, bias=True)"
