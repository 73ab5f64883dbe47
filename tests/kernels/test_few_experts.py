"""The experts of a few tokens by two kernels: the definition on awkward routings, interpreted here, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels import few_experts as module
from inference_pio.kernels.experts import naive_expert_down, naive_expert_gate_up
from inference_pio.kernels.few_experts import TRITON, choose_few_experts_backend, few_experts
from inference_pio.kernels.fp8 import quantize_rows_fp8
from inference_pio.kernels.int4 import quantize_groups, words_of
from inference_pio.kernels.int8 import quantize_rows
from inference_pio.kernels.triton.experts_launch import RowLaunch
from tests.kernels.triton.conftest import interpreted

__all__ = ["interpreted"]
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
EXPERTS, WIDTH, INNER = 5, 64, 32
ROUTINGS: dict[str, list[list[int]]] = {
    "one token": [[3, 0]],
    "all choose one": [[2, 4], [2, 4], [2, 4]],
    "one twice": [[1, 1, 4], [0, 0, 0]],
    "elsewhere": [[5, 0], [9, 5], [4, 7]],
    "eight": [[token % 5, (token + 2) % 5] for token in range(8)],
}
KINDS = ["plain", "int8", "fp8", "int4"]


def held(kind: str, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    if kind == "plain":
        return weight, None
    if kind == "int4":
        codes, grids = quantize_groups(weight, 32)
        return words_of(codes), grids
    return (quantize_rows if kind == "int8" else quantize_rows_fp8)(weight)


def given(kind: str, routing: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Any]:
    chance = torch.Generator().manual_seed(len(routing))
    index = torch.tensor(ROUTINGS[routing])
    x, weight = torch.randn(len(index), WIDTH, generator=chance), torch.rand(index.shape, generator=chance)
    matrices = [torch.randn(EXPERTS, *shape, generator=chance) / 8 for shape in ((2 * INNER, WIDTH), (WIDTH, INNER))]
    pairs = [held(kind, matrix.to(dtype)) for matrix in matrices]
    pairs = [(codes.to(device), None if scales is None else scales.to(device)) for codes, scales in pairs]
    return [x.to(device, dtype), *pairs, index.to(device), weight.to(device, dtype)]


def put_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """The interpreter stands in for a GPU, with so many rows a program that it has few of them to walk."""
    from inference_pio.kernels.triton import experts

    patch.setattr(module, "choose_few_experts_backend", lambda *where: TRITON)
    for name in ("choose_gate_up_launch", "choose_down_launch"):
        patch.setattr(experts, name, lambda *sizes: RowLaunch(16, 64, 1))


def as_on_a_gpu(*arguments: Any) -> torch.Tensor | None:
    with pytest.MonkeyPatch.context() as patch:
        put_on_a_gpu(patch)
        return few_experts(*arguments)


def near(kind: str, routing: str) -> None:
    x, gate_up, down, index, weight = arguments = given(kind, routing)
    hidden = naive_expert_gate_up(x, gate_up[0], index, scales=gate_up[1])
    wanted = naive_expert_down(hidden, down[0], index, weight, scales=down[1])
    found = as_on_a_gpu(*arguments)
    assert found is not None
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_it_is_the_definition_in_the_interpreter(kind: str, routing: str, interpreted: Callable[..., Any]) -> None:
    interpreted(near, kind, routing)


def not_served() -> list[str]:
    """What is left to others, by name, where a kernel would run."""
    x, gate_up, down, index, weight = given("int8", "one token")
    scale, grids = gate_up[1], held("int4", torch.ones(EXPERTS, 2 * INNER, WIDTH))
    nine = [part.repeat(9, 1) for part in (x, index, weight)]
    cases = {
        "nine tokens": (nine[0], gate_up, down, nine[1], nine[2]),
        "none": (x[:0], gate_up, down, index[:0], weight[:0]),
        "chooses none": (x, gate_up, down, index[:, :0], weight[:, :0]),
        "weights learned": (x, gate_up, down, index, weight.clone().requires_grad_()),
        "tokens learned": (x.clone().requires_grad_(), gate_up, down, index, weight),
        "scales apart": (x, (gate_up[0], scale.t().contiguous().t()), down, index, weight),
        "codes apart": (x, (gate_up[0].transpose(1, 2).contiguous().transpose(1, 2), scale), down, index, weight),
        "as files hold them": (x, (grids[0].view(torch.uint8), grids[1]), down, index, weight),
        "float64": (x.double(), gate_up, down, index, weight),
    }
    assert as_on_a_gpu(x, gate_up, down, index, weight) is not None
    assert as_on_a_gpu(x, grids, down, index, weight) is not None
    return [name for name, arguments in cases.items() if as_on_a_gpu(*arguments) is None]


@needs_triton
def test_what_kernels_do_not_serve_is_left_to_others(interpreted: Callable[..., Any]) -> None:
    assert interpreted(not_served) == [
        "nine tokens", "none", "chooses none", "weights learned", "tokens learned", "scales apart", "codes apart",
        "as files hold them", "float64",
    ]  # fmt: skip


def test_here_it_is_left_to_others() -> None:
    assert choose_few_experts_backend(torch.device("cpu"), torch.bfloat16) != TRITON
    assert few_experts(*given("int8", "one token")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_it_is_the_definition_on_a_gpu(kind: str, routing: str, dtype: torch.dtype) -> None:
    x, gate_up, down, index, weight = arguments = given(kind, routing, "cuda", dtype)
    hidden = naive_expert_gate_up(x, gate_up[0], index, scales=gate_up[1])
    wanted = naive_expert_down(hidden, down[0], index, weight, scales=down[1])
    found = few_experts(*arguments)
    assert found is not None
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
