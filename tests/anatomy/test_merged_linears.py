"""Layers of one input as one product: no byte more, the same values under the same names, and separate again after."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.utils import parametrize

from inference_pio.anatomy.merged_linears import Sharing, merge, merged_linear, together, why_separate
from inference_pio.formats.exponent12 import Exponent12Linear
from inference_pio.formats.int8 import Int8Linear
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.slots import storage_key


def layers(bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(6, rows, bias=bias, dtype=dtype) for rows in (8, 2, 3)).requires_grad_(False)


def merged(model: nn.ModuleList) -> Journal:
    journal = Journal(model)
    with journal.step("merge"):
        merge(journal, list(model))
    return journal


def bytes_of(model: nn.Module) -> int:
    return sum({storage_key(one): one.untyped_storage().nbytes() for one in model.parameters()}.values())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_product_is_that_of_each_layer(bias: bool, dtype: torch.dtype) -> None:
    model, x = layers(bias, dtype), torch.randn(2, 5, 6, dtype=dtype)
    assert merged_linear(list(model), x) is None
    wanted = torch.cat([layer(x) for layer in model], -1)
    before, state, held = fingerprint(model), copy.deepcopy(model.state_dict()), bytes_of(model)
    journal = merged(model)
    assert len({storage_key(layer.weight) for layer in model}) == 1
    assert bytes_of(model) == held
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    got = merged_linear(list(model), x)
    assert got is not None
    torch.testing.assert_close(got, wanted, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    journal.frames[0].unwind(0)
    assert len({storage_key(layer.weight) for layer in model}) == 3
    assert before.differences(fingerprint(model)) == []


def in_12_bits(bias: bool = False) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Plain layers, and others that hold the same weights as codes."""
    torch.manual_seed(0)
    plain = nn.ModuleList(nn.Linear(32, rows, bias=bias, dtype=torch.bfloat16) for rows in (8, 2, 3))
    plain.requires_grad_(False)
    return plain, nn.ModuleList(Exponent12Linear.from_linear(layer) for layer in copy.deepcopy(plain))


@pytest.mark.parametrize("kept", [None, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_exact_codes_are_one_product_only_between_merge_and_undo(bias: bool, kept: int | None) -> None:
    (plain, model), x = in_12_bits(bias), torch.randn(2, 32).bfloat16()
    if kept is not None:  # a layer that the format did not take
        model[kept] = copy.deepcopy(plain[kept])
    assert why_separate(list(model), Sharing(model)) is None
    before = fingerprint(model)
    assert merged_linear(list(model), x) is None  # where nobody merges, each is called: with exact=True
    merged(plain)
    journal = merged(model)
    for one in (model, copy.deepcopy(model)):
        assert torch.equal(merged_linear(list(one), x), merged_linear(list(plain), x))  # type: ignore[arg-type]
    handle = model[1].register_forward_hook(lambda *given: None)
    assert merged_linear(list(model), x) is None
    handle.remove()
    journal.frames[0].unwind(0)
    assert merged_linear(list(model), x) is None
    assert before.differences(fingerprint(model)) == []


def in_8_bits(bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> nn.ModuleList:
    torch.manual_seed(0)
    plain = [nn.Linear(32, rows, bias=bias, dtype=dtype) for rows in (8, 2, 3)]
    return nn.ModuleList(Int8Linear.from_linear(layer) for layer in plain).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_of_rows_lie_side_by_side_and_are_one_product(bias: bool, dtype: torch.dtype) -> None:
    model, x = in_8_bits(bias, dtype), torch.randn(2, 1, 32, dtype=dtype)
    assert why_separate(list(model), Sharing(model)) is None
    assert merged_linear(list(model), x) is None
    wanted = torch.cat([layer(x) for layer in model], -1)
    before, state = fingerprint(model), copy.deepcopy(model.state_dict())
    journal = merged(model)
    for name in ("weight_int8", "weight_scale"):
        assert len({storage_key(getattr(layer, name)) for layer in model}) == 1
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    got = merged_linear(list(model), x)
    assert got is not None
    torch.testing.assert_close(got, wanted, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    twin = copy.deepcopy(model)  # codes lie side by side in the memory of a copy as well, and its biases do not
    assert storage_key(twin[0].weight_int8) != storage_key(model[0].weight_int8)
    beside = merged_linear(list(twin), x)
    assert beside is None if bias else torch.equal(beside, got)  # type: ignore[arg-type]
    model[1].weight_int8.neg_()
    assert torch.equal(merged_linear(list(model), x)[..., 8:10], model[1](x))  # type: ignore[index]
    model[1].weight_int8.neg_()
    model[1].weight_scale.data = model[1].weight_scale.data.clone()
    assert merged_linear(list(model), x) is None  # the codes lie side by side, and their scales do not
    journal.frames[0].unwind(0)
    assert before.differences(fingerprint(model)) == []


def test_a_bias_that_comes_later_is_not_forgotten() -> None:
    model, x = layers(), torch.randn(2, 6)
    merged(model)
    model[1].bias = nn.Parameter(torch.ones(2))
    assert merged_linear(list(model), x) is None


def test_codes_on_another_device_than_the_cpu_stay_where_they_are() -> None:
    model = in_8_bits().to("meta")
    assert why_separate(list(model), Sharing(model)) == "a step on a GPU multiplies codes side by side where they are"


def alive() -> int:
    """Bytes that tensors hold anywhere in this process; what a process has of the system is no measure of them."""
    found = (one for one in gc.get_objects() if type(one) in (torch.Tensor, nn.Parameter))
    tensors = [one for one in found if one.device.type == "cpu" and one.layout is torch.strided]
    return sum({storage_key(one): one.untyped_storage().nbytes() for one in tensors}.values())


def test_no_more_than_one_merged_tensor_is_held_twice() -> None:
    sets = [[nn.Linear(64, 256, bias=False) for _ in range(3)] for _ in range(16)]
    model = nn.ModuleList(layer for one in sets for layer in one)
    journal = Journal(model)
    gc.collect()
    with journal.step("merge"):
        before, most = alive(), 0
        for one in sets:
            merge(journal, one)
            most = max(most, alive())
    merged_bytes = 3 * 64 * 256 * 4
    assert before - merged_bytes < most <= before + merged_bytes
    assert all(together([layer.weight for layer in one]) is not None for one in sets)


def test_weights_written_in_place_count_and_those_that_part_are_computed_alone() -> None:
    model, x = layers(), torch.randint(-9, 10, (2, 6)).float()  # sums of whole numbers: exact in whatever order
    merged(model)
    model[1].weight.copy_(torch.randint(-9, 10, (2, 6)))
    assert torch.equal(merged_linear(list(model), x)[:, 8:10], model[1](x))  # type: ignore[index]
    assert merged_linear(list(copy.deepcopy(model)), x) is None
    model[1].weight.data = model[1].weight.data.clone()
    assert together([layer.weight for layer in model]) is None
    assert merged_linear(list(model), x) is None


def test_neighbours_by_chance_are_not_taken_for_one_tensor() -> None:
    """Two tensors of memory that happen to lie side by side: one must not be read through the other."""
    whole = np.zeros(24, dtype=np.float32)
    model = nn.ModuleList([nn.Linear(6, 2, bias=False), nn.Linear(6, 2, bias=False)]).requires_grad_(False)
    first, second = torch.frombuffer(whole[:12], dtype=torch.float32), torch.frombuffer(whole[12:], dtype=torch.float32)
    assert first.data_ptr() + first.nbytes == second.data_ptr()
    model[0].weight.data, model[1].weight.data = first.view(2, 6), second.view(2, 6)
    assert together([layer.weight for layer in model]) is None


@pytest.mark.parametrize("watch", ["hook", "forward"])
def test_a_layer_that_is_watched_is_called(watch: str) -> None:
    model, x = layers(), torch.randn(2, 6)
    merged(model)
    if watch == "hook":
        model[2].register_forward_pre_hook(lambda module, given: None)
    else:
        model[2].forward = model[2].forward
    assert merged_linear(list(model), x) is None


def _adapted(model: nn.ModuleList) -> None:
    model[0] = LoraLinear(model[0], "default", r=2, config=LoraConfig())


def _shared(model: nn.ModuleList) -> None:
    model.append(nn.Linear(6, 8, bias=False))
    model[3].weight = model[0].weight


def _one_storage(model: nn.ModuleList) -> None:
    model[1].weight.data = model[0].weight.data[:2]


def _parametrized(model: nn.ModuleList) -> None:
    parametrize.register_parametrization(model[1], "weight", nn.Identity())


REASONS: dict[str, Callable[[nn.ModuleList], object]] = {
    "an adapter": _adapted,
    "an? Int8Linear": lambda model: model.__setitem__(1, Int8Linear.from_linear(model[1])),
    "hooks": lambda model: model[0].register_forward_hook(lambda *given: None),
    "shared with another place": _shared,
    "is shared": _one_storage,
    "dtype": lambda model: model[2].to(torch.bfloat16),
    "have a bias and some": lambda model: model.__setitem__(2, nn.Linear(6, 3)),
    "ParametrizedLinear": _parametrized,
    "width": lambda model: model.__setitem__(2, nn.Linear(5, 3, bias=False)),
    "empty": lambda model: model.__setitem__(2, nn.Linear(6, 0, bias=False)),
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_what_stays_separate_is_told(reason: str) -> None:
    model = layers()
    assert why_separate(list(model), Sharing(model)) is None
    REASONS[reason](model)
    said = why_separate(list(model)[:3], Sharing(model))
    assert said is not None
    assert re.search(reason, said)
