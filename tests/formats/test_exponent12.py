"""exponent12 as a format: the same bits out as in, whatever holds it, and each refusal with its reason."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.errors import InvalidModel, RefusedOnOptimized
from inference_pio.formats.compressed_module import is_sized_by_data
from inference_pio.formats.exponent12 import Exponent12Experts, Exponent12Linear
from tests import tiny
from tests.formats.help import linear, seeded

MODELS = ["qwen3_moe", "glm4_moe", "glm4_moe_lite"]


def experts(model_name: str = "qwen3_moe", seed: int = 0) -> nn.Module:
    config = tiny.CONFIGS[model_name]()
    config.moe_intermediate_size = 64
    return tiny.build(model_name, torch.bfloat16, seed, config).model.layers[1].mlp.experts


def routing(module: nn.Module, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    chosen = [torch.randperm(module.num_experts, generator=generator)[:2] for _ in range(tokens)]
    index = torch.stack(chosen) if chosen else torch.zeros(0, 2, dtype=torch.long)
    states = torch.randn(tokens, module.hidden_dim, generator=generator).bfloat16()
    return states, index, torch.rand(tokens, 2, generator=generator).bfloat16()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (96, 7), (16, 1), (64, 128)])
@pytest.mark.parametrize("rows", [(3, 5), (1,), (0,)])
def test_a_layer_answers_with_the_bits_of_the_original(
    inputs: int, outputs: int, bias: bool, rows: tuple[int, ...]
) -> None:
    original = linear(inputs, outputs, bias).bfloat16().eval()
    layer, x = Exponent12Linear.from_linear(original), seeded(*rows, inputs).bfloat16()
    with torch.no_grad():
        assert torch.equal(layer(x), original(x))
    assert torch.equal(layer.dequantize(torch.bfloat16), original.weight)
    assert layer.bias is original.bias
    assert not layer.training
    assert repr(layer) == f"Exponent12Linear(in_features={inputs}, out_features={outputs}, bias={bias})"


@pytest.mark.parametrize("rows", [3, 40])
def test_compiled_it_computes_the_same_with_and_without_gradients(rows: int) -> None:
    torch.compiler.reset()
    layer, x = Exponent12Linear.from_linear(linear(64, 64).bfloat16()), seeded(rows, 64).bfloat16()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    for module, given in ((compiled, x.clone().requires_grad_()), (layer, x.clone().requires_grad_())):
        module(given).sum().backward()
        want = layer.dequantize().sum(0).expand(rows, 64)
        torch.testing.assert_close(given.grad.float(), want, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("tokens", [0, 1, 3, 40])
def test_experts_answer_with_the_bits_of_the_librarys(model_name: str, implementation: str, tokens: int) -> None:
    original = experts(model_name)
    module = Exponent12Experts.from_experts(original)
    original.config._experts_implementation = implementation
    given = routing(original, tokens)
    with torch.no_grad():
        assert torch.equal(module(*given), original(*given))
    for held, weight in zip(module.dequantize(torch.bfloat16), original.parameters(), strict=True):
        assert torch.equal(held, weight)


def test_experts_that_no_token_hits_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    module, unpacked = Exponent12Experts.from_experts(experts()), []
    from inference_pio.formats import exponent12

    unpack_one = exponent12.unpack_one
    monkeypatch.setattr(
        exponent12, "unpack_one", lambda packed, number: unpacked.append(number) or unpack_one(packed, number)
    )
    states, _, weights = routing(module, 2)
    module(states, torch.tensor([[5, 2], [2, 8]]), weights)  # 8 is an expert that lives elsewhere
    assert unpacked == [2, 5, 2, 5]


def test_gradients_flow_through_experts_to_states_and_routing_weights() -> None:
    original = experts()
    gradients = []
    for module in (Exponent12Experts.from_experts(original), original):
        states, index, weights = routing(original, 9)
        states.requires_grad_(), weights.requires_grad_()
        module(states, index, weights).float().pow(2).sum().backward()
        gradients.append((states.grad, weights.grad))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_experts_are_copied_pickled_and_loaded_with_lists_of_other_lengths() -> None:
    module, other = (Exponent12Experts.from_experts(experts(seed=seed)) for seed in (0, 7))
    assert module.gate_up_places.shape != other.gate_up_places.shape
    given = routing(module, 5)
    other.load_state_dict(module.state_dict())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(twin(*given), module(*given))
    assert is_sized_by_data(module, "gate_up_places")
    assert is_sized_by_data(module, "down_values")
    assert not is_sized_by_data(module, "down_starts")
    with pytest.raises(RefusedOnOptimized, match="gate_up_proj"):
        module.load_state_dict(experts().state_dict(), strict=False)


def test_experts_take_twelve_bits_a_weight_and_print_their_sizes() -> None:
    module = Exponent12Experts.from_experts(experts())
    weights = sum(one.numel() for one in experts().parameters())
    assert 12 < sum(one.nbytes for one in module.buffers()) * 8 / weights < 12.3  # rows of 64: 1/8 bit for the lowest
    assert module.extra_repr() == "experts=8, hidden=64, intermediate=64"
    assert type(Exponent12Experts.from_experts(experts().to("meta")).down_exponent12) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_weights_of_other_dtypes_are_refused_by_name(dtype: torch.dtype) -> None:
    said = f"its weights are {str(dtype).removeprefix('torch.')}: exponent12 is for bfloat16"
    with pytest.raises(InvalidModel, match=said):
        Exponent12Linear.from_linear(linear().to(dtype))
    with pytest.raises(InvalidModel, match=said):
        Exponent12Experts.from_experts(experts().to(dtype))


def test_inputs_that_fill_no_run_are_refused() -> None:
    with pytest.raises(InvalidModel, match="its 100 inputs are no multiple of 16"):
        Exponent12Linear.from_linear(linear(100, 8).bfloat16())


def test_a_conv1d_is_refused_since_its_sums_have_another_order() -> None:
    with pytest.raises(InvalidModel, match="a Conv1D multiplies in another order"):
        Exponent12Linear.from_linear(Conv1D(48, 64).bfloat16())
    with pytest.raises(InvalidModel, match="Conv2d has no exponent12 form"):
        Exponent12Linear.from_linear(nn.Conv2d(1, 1, 1))


def test_a_matrix_of_more_places_than_can_be_told_is_refused() -> None:
    large = nn.Linear(65536, 32768, bias=False, dtype=torch.bfloat16, device="meta")
    assert Exponent12Linear.why_not_module(large) == "it has more than 2147483647 weights in a matrix"


def test_weights_of_too_many_exponents_are_refused_with_their_share() -> None:
    layer, module = linear(64, 48).bfloat16(), experts()
    with torch.no_grad():
        layer.weight[:, ::16] *= 2.0**-40
        module.down_proj[:, :, ::16] *= 2.0**-40
    with pytest.raises(InvalidModel, match=r"6\.2% of its weights have exponents below .* and 1\.6% is the most"):
        Exponent12Linear.from_linear(layer)
    with pytest.raises(InvalidModel, match=r"2\.1% of its weights have exponents below"):
        Exponent12Experts.from_experts(module)


def test_asked_for_calibrated_codes_it_has_none() -> None:
    with pytest.raises(NotImplementedError, match="not rounded"):
        Exponent12Linear.quantize_with_gram(torch.ones(1, 1, 16), torch.ones(1, 16, 16), [1], 128)


def test_what_it_costs_is_told_by_device() -> None:
    said = {name: str(Exponent12Linear.cost(torch.device(name), torch.bfloat16)) for name in ("cpu", "cuda")}
    assert ["which read codes as they are" in one for one in said.values()] == [False, True]
    assert all(one.endswith("memory is saved, time is not.") for one in said.values())
