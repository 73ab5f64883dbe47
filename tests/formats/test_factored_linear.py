"""Two factors compute their product, once for all layers of one input, and hold on to nothing."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.formats.factored_linear import FactoredLinear, IntoFew


def chance(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made


def pair(pivoted: bool, rank: int = 3, width: int = 10, outs: tuple[int, ...] = (6, 4)) -> list[FactoredLinear]:
    order = torch.randperm(width, generator=torch.Generator().manual_seed(1)) if pivoted else None
    into = IntoFew(linear(chance(rank, width - rank if pivoted else width)), order, readers=len(outs))
    return [FactoredLinear(into, linear(chance(out, rank, seed=out), chance(out, seed=9))) for out in outs]


@pytest.mark.parametrize("pivoted", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_it_computes_the_product(pivoted: bool, lead: tuple[int, ...]) -> None:
    x = chance(*lead, 10)
    for layer in pair(pivoted):
        assert layer.product().shape == (layer.out_features, 10)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.product(), layer.out_of.bias))


def counted(layers: list[FactoredLinear]) -> list[int]:
    calls = []
    layers[0].into.rest.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_layers_of_one_input_compute_it_once_and_hold_nothing_afterwards() -> None:
    layers, x = pair(True), chance(4, 10)
    calls = counted(layers)
    for _ in range(3):
        for layer in layers:
            layer(x)
    assert len(calls) == 3
    assert layers[0].into._held._last is None


def test_an_input_that_was_written_to_or_needs_gradients_now_is_another() -> None:
    layers, x = pair(True), chance(4, 10)
    with torch.no_grad():
        layers[0](x)
        x.mul_(2)
        torch.testing.assert_close(layers[1](x), nn.functional.linear(x, layers[1].product(), layers[1].out_of.bias))
        layers[0](x)
    layers[1](x).sum().backward()
    assert layers[1].into.rest.weight.grad is not None
    with torch.inference_mode():
        layers[0](x)
    assert not layers[1](x).is_inference()


def test_copies_and_pickles_share_the_factor_among_themselves_and_hold_nothing() -> None:
    layers, x = nn.ModuleList(pair(True)), chance(4, 10)
    layers[0](x)
    for twin in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert twin[0].into is twin[1].into is not layers[0].into
        assert twin[0].into._held._last is None
        assert torch.equal(twin[1](x), layers[1](x))


def test_threads_get_what_belongs_to_their_input() -> None:
    layers, wrong = pair(True), []

    def run(seed: int) -> None:
        for number in range(200):
            x = chance(2, 10, seed=seed * 1000 + number)
            for layer in layers:
                wanted = nn.functional.linear(x, products[id(layer)], layer.out_of.bias)
                if not torch.allclose(layer(x), wanted, atol=1e-4):
                    wrong.append(seed)

    products = {id(layer): layer.product() for layer in layers}
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_original_weight_is_refused_and_explained() -> None:
    layer = pair(True)[0]
    with pytest.raises(AttributeError, match="two factors"):
        layer.weight
    with pytest.raises(RefusedOnOptimized, match="two factors"):
        nn.Sequential(layer).load_state_dict({"0.weight": chance(6, 10)}, strict=False)
    nn.Sequential(layer).load_state_dict(nn.Sequential(pair(True)[0]).state_dict())


def test_a_cast_leaves_the_order_alone() -> None:
    layer = pair(True)[0].to(torch.bfloat16)
    assert layer.into.order.dtype is torch.int64
    assert layer(chance(2, 10).bfloat16()).dtype is torch.bfloat16


def test_one_that_asks_again_is_given_its_own() -> None:
    layers, x = pair(True), chance(4, 10)
    for _ in range(2):  # a backward frees what a forward kept
        layers[0](x).sum().backward()
    with torch.no_grad():
        layers[0].into.rest.weight.mul_(2)  # as an optimizer does
        for layer in layers:
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.product(), layer.out_of.bias))
            layer.into.rest.weight.mul_(2)


def test_what_not_all_ask_for_is_let_go_with_its_input() -> None:
    layers = pair(True)
    with torch.no_grad():
        x = chance(4, 10)
        layers[0](x)
        assert layers[0].into._held._last is not None
        del x
    assert layers[0].into._held._last is None


def test_it_is_given_its_input_as_a_linear_layer_is() -> None:
    layer, x = pair(True)[0], chance(4, 10)
    assert torch.equal(layer(input=x), layer(x))
