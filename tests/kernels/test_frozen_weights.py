"""Products with codes: what flows back, and what a graph holds meanwhile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inference_pio.kernels.frozen_weights import cast, frozen_linear, remade_linear


def weights(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return codes.to(dtype) * scale.to(dtype)


def product(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights(codes, scale, x.dtype))


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)
    return x, torch.randint(-9, 9, (5, 4), generator=generator, dtype=torch.int8), torch.rand(5, 1), bias


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_those_of_the_weights_that_codes_stand_for(with_bias: bool) -> None:
    x, codes, scale, bias = given()
    x.requires_grad_(), bias.requires_grad_()
    y = frozen_linear(x, codes, scale, bias if with_bias else None, product, weights)
    assert torch.equal(y, product(x, codes, scale) + bias if with_bias else product(x, codes, scale))
    y.sum().backward()
    torch.testing.assert_close(x.grad, weights(codes, scale, torch.float32).sum(0).expand(3, 4))
    assert (bias.grad is not None) is with_bias


def test_the_graph_holds_codes_and_no_weights() -> None:
    x, codes, scale, _ = given()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        frozen_linear(x.requires_grad_(), codes, scale, None, product, weights)
    assert [tensor.shape for tensor in saved] == [codes.shape, scale.shape]


def test_without_gradients_the_product_alone_runs() -> None:
    x, codes, scale, _ = given()
    with torch.no_grad():
        assert frozen_linear(x.requires_grad_(), codes, scale, None, product, lambda *_: 1 / 0).grad_fn is None


def test_a_cast_to_the_same_dtype_is_the_tensor_itself() -> None:
    x = torch.ones(2)
    assert cast(x, torch.float32) is x
    assert cast(x, torch.bfloat16).dtype is torch.bfloat16


def test_weights_that_are_made_are_made_anew_for_a_backward() -> None:
    made = []

    def make(dtype: torch.dtype) -> torch.Tensor:
        made.append(dtype)
        return torch.ones(4, 3, dtype=dtype)

    x = torch.ones(2, 3, requires_grad=True)
    y = remade_linear(x, make)
    assert made == [torch.float32]
    y.sum().backward()
    assert made == [torch.float32, torch.float32]
    assert x.grad.tolist() == [[4.0] * 3] * 2
