"""Ordinary calls on compressed modules: casts, checkpoints of the original, questions after the weight, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from inference_pio.compat import has_fast_int8_matmul
from inference_pio.errors import RefusedOnOptimized
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.compressed_module import portable_tensor
from inference_pio.formats.int8 import Int8Linear
from inference_pio.kernels.dynamic_linear import naive_dynamic_linear
from inference_pio.kernels.int8 import int8_linear
from tests.formats.help import ALL_FORMATS, linear, linear_of, seeded


@pytest.fixture(params=ALL_FORMATS)
def layer(request: pytest.FixtureRequest) -> CompressedLinear:
    return linear_of(request.param, linear(64, 64))


def rows_for(layer: CompressedLinear) -> torch.Tensor:
    return seeded(3, 64).to(layer.bias.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_casting_a_model_never_rounds_a_scale_or_a_code(layer: CompressedLinear, dtype: torch.dtype) -> None:
    held = [tensor.clone() for tensor in layer.held("weight")]
    model = nn.Sequential(layer).to(dtype)
    for now, before in zip(layer.held("weight"), held, strict=True):
        assert torch.equal(now, before)
        assert now.dtype is before.dtype
    assert layer.bias.dtype is dtype
    assert model(torch.ones(2, 64, dtype=dtype)).dtype is dtype


def test_a_move_to_where_it_is_leaves_the_tensors_that_there_are(layer: CompressedLinear) -> None:
    held = layer.held("weight")
    layer.to("cpu").float()
    assert all(one is other for one, other in zip(layer.held("weight"), held, strict=True))


def test_moving_to_another_device_moves_all_of_it(layer: CompressedLinear) -> None:
    codes = layer.state_dict()[f"weight_{layer.format}"]
    beside = [tensor.dtype for tensor in layer.held("weight")[1:]]
    layer.to("meta", torch.float16)
    assert all(tensor.is_meta for tensor in (*layer.held("weight"), layer.bias))
    assert [tensor.dtype for tensor in layer.held("weight")[1:]] == beside
    assert layer.held("weight")[0].dtype is codes.dtype  # what goes to another device lies as every device reads it
    layer.to_empty(device="cpu")
    assert all(tensor.device.type == "cpu" for tensor in layer.held("weight"))


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_of_the_original_is_refused_by_name(layer: CompressedLinear, strict: bool) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(RefusedOnOptimized, match=r"0\.weight: .*reset_model_optimizations\(model\) before"):
        model.load_state_dict(nn.Sequential(linear(64, 64)).state_dict(), strict=strict)


def test_asking_for_the_weight_says_what_there_is_instead(layer: CompressedLinear) -> None:
    assert getattr(layer, "weight", None) is None
    with pytest.raises(AttributeError, match=rf"no 'weight': .*{layer.format} codes.*dequantize\(\) gives the weights"):
        _ = layer.weight
    with pytest.raises(AttributeError, match="no attribute 'wieght'"):
        _ = layer.wieght


@pytest.mark.parametrize("assign", [False, True])
def test_its_state_comes_back_in_another_layer(layer: CompressedLinear, assign: bool) -> None:
    other, x = linear_of(layer.format, nn.Linear(64, 64)), rows_for(layer)
    beside = [f"weight_{part}" for part in layer.beside]
    assert list(layer.state_dict()) == ["bias", f"weight_{layer.format}", *beside]
    assert not torch.equal(layer(x), other(x))
    state = nn.Sequential(layer).state_dict()
    assert nn.Sequential(other).load_state_dict(state, assign=assign).missing_keys == []
    assert torch.equal(layer(x), other(x))
    assert all(torch.equal(a, b) for a, b in zip(layer.held("weight"), other.held("weight"), strict=True))
    assert all(torch.equal(state[name], kept) for name, kept in nn.Sequential(layer).state_dict().items())


def test_a_state_of_other_sizes_is_an_error_that_names_it(layer: CompressedLinear) -> None:
    with pytest.raises(RuntimeError, match=f"weight_{layer.format}"):
        layer.load_state_dict(linear_of(layer.format, linear(64, 128)).state_dict())


def test_copies_and_pickles_compute_the_same(layer: CompressedLinear) -> None:
    x = rows_for(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert torch.equal(twin(x), layer(x))
    assert copy.deepcopy(layer).held("weight")[0].data_ptr() != layer.held("weight")[0].data_ptr()


def test_a_deep_copy_may_put_other_tensors_in_the_places_of_its_own(layer: CompressedLinear) -> None:
    """A plan's skeleton is such a copy: no codes may be made for it."""
    memo = {id(tensor): tensor.to("meta") for tensor in (*layer.held("weight"), layer.bias)}
    twin = copy.deepcopy(layer, memo)
    assert all(tensor.is_meta for tensor in twin.held("weight"))


def test_what_files_hold_is_the_same_on_every_machine(layer: CompressedLinear) -> None:
    codes = layer.held("weight")[0]
    held = portable_tensor(layer, f"weight_{layer.format}", codes)
    assert torch.equal(held, layer.state_dict()[f"weight_{layer.format}"])
    assert torch.equal(layer.settled(held), codes)
    assert portable_tensor(layer, "bias", layer.bias) is layer.bias
    assert portable_tensor(nn.Linear(2, 2), f"weight_{layer.format}", codes) is codes


def test_a_move_that_fails_leaves_codes_as_their_device_reads_them(layer: CompressedLinear) -> None:
    before = dict(layer.codes())

    def failing(tensor: torch.Tensor) -> torch.Tensor:
        raise MemoryError("no room there")

    with pytest.raises(MemoryError):
        layer._apply(failing)
    assert all(codes is before[each] for each, codes in layer.codes())


def test_activations_are_coded_only_where_asked_and_only_in_long_products() -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    layer = Int8Linear.from_linear(nn.Linear(64, 48))
    plain, codes, scale = layer(x), *layer.held("weight")
    layer.codes_activations = True
    coded = naive_dynamic_linear(x, codes, scale, layer.bias)
    if has_fast_int8_matmul(x.device):
        torch.testing.assert_close(layer(x), coded, rtol=1e-5, atol=1e-5)
        assert not torch.equal(layer(x), plain)
        assert copy.deepcopy(layer).codes_activations
    assert torch.equal(layer(x[:4]), int8_linear(x[:4], codes, scale, layer.bias))
