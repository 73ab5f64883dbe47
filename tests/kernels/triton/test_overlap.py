"""Kernels that begin before the one in front has ended: what stands before they wait, and what they see on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.routing import RoutingRule
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
HEADS, WIDTH, ROPE, LATENT, EXPERTS, TOP_K = 8, 128, 64, 512, 16, 4
Call = Callable[[torch.device, bool], Any]


def half(*shape: int, device: torch.device) -> torch.Tensor:
    chance = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=chance, device=device, dtype=torch.bfloat16)


def whole(*numbers: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def absorbing(device: torch.device, dependent: bool) -> Any:
    from inference_pio.kernels.triton.latent_step import absorb_and_store

    query, up = half(1, HEADS * (WIDTH + ROPE), device=device), half(HEADS * 2 * WIDTH, LATENT, device=device)
    kv, cache = half(1, LATENT + ROPE, device=device), half(1, 64, 1, LATENT + ROPE, device=device)
    cos, sin = half(2, 64, ROPE, device=device)
    here = whole(5, device=device)
    return absorb_and_store(
        query, up, kv, half(LATENT, device=device), 1e-6, cos, sin, here, cache, here,
        heads=HEADS, nope=WIDTH, interleaved=False, dependent=dependent,
    )  # fmt: skip


def storing(device: torch.device, dependent: bool) -> Any:
    from inference_pio.kernels.triton.latent_step import latent_store

    kv, cache = half(1, LATENT + ROPE, device=device), half(1, 64, 1, LATENT + ROPE, device=device)
    cos, sin = half(2, 64, ROPE, device=device)
    here = whole(5, device=device)
    norm = half(LATENT, device=device)
    latent_store(kv, norm, 1e-6, cos, sin, here, cache, here, interleaved=False, dependent=dependent)
    return cache


def expanding(device: torch.device, dependent: bool) -> Any:
    from inference_pio.kernels.triton.latent_step import expand

    up = half(HEADS * 2 * WIDTH, LATENT, device=device)
    return expand(half(1, HEADS, LATENT, device=device), up, WIDTH, dependent=dependent)


def routing(device: torch.device, dependent: bool) -> Any:
    from inference_pio.kernels.triton.routing import route

    x, gate = half(1, 2048, device=device), half(EXPERTS, 2048, device=device)
    return route(x, gate, RoutingRule(TOP_K), norm_weight=half(2048, device=device), eps=1e-6, dependent=dependent)


def gating(device: torch.device, dependent: bool) -> Any:
    from inference_pio.kernels.triton.experts import expert_gate_up

    x, experts = half(1, 512, device=device), half(EXPERTS, 2 * 256, 512, device=device)
    return expert_gate_up(x, experts, whole(3, 1, 4, 2, device=device)[None], dependent=dependent)


def gathering(device: torch.device, dependent: bool) -> Any:
    from inference_pio.kernels.triton.experts import expert_down

    hidden, experts = half(1, TOP_K * 256, device=device), half(EXPERTS, 512, 256, device=device)
    index, weight = whole(3, 1, 4, 2, device=device)[None], half(1, TOP_K, device=device).float()
    return expert_down(hidden, experts, index, weight, residual=half(1, 512, device=device), dependent=dependent)


KERNELS = {
    "latent_step.absorb_kernel": absorbing,
    "latent_step.latent_store_kernel": storing,
    "latent_step.expand_kernel": expanding,
    "routing.route_kernel": routing,
    "experts.expert_gate_up_kernel": gating,
    "experts.expert_down_kernel": gathering,
}


@needs_triton
@pytest.mark.parametrize("names", KERNELS)
def test_nothing_that_others_wrote_is_read_before_a_dependent_kernel_waits(names: str, compiler: Compiler) -> None:
    import importlib

    kernels = []
    for name in names.split():
        module, kernel = name.split(".")
        kernels.append(getattr(importlib.import_module(f"inference_pio.kernels.triton.{module}"), kernel))
    compiler.for_machine(90, *kernels)
    KERNELS[names](torch.device("cpu"), True)
    assert len(compiler.found) == len(kernels)
    for code in compiler.found:
        code.assert_it_fits(MACHINES[90])
        wait = code.order.index("ACQBULK")
        before = code.order[:wait]
        assert "PREEXIT" in before
        read = [kind for kind in before if kind.startswith(("LDG", "STG"))]
        assert not read or "route" in code.name, read  # a router reads its weights, which no kernel writes
        assert not any(kind.startswith("STG") for kind in read)
        assert any(kind.startswith("STG") for kind in code.order[wait:])


@needs_triton
def test_others_do_not_wait(compiler: Compiler) -> None:
    from inference_pio.kernels.triton.routing import route_kernel

    compiler.for_machine(90, route_kernel)
    routing(torch.device("cpu"), False)
    assert not any("ACQBULK" in code.order for code in compiler.found)


@needs_triton
@pytest.mark.slow
def test_what_is_interpreted_waits_for_nothing(interpreted: Callable[..., Any]) -> None:
    interpreted(alike_interpreted)


def alike_interpreted() -> None:
    from inference_pio.kernels.triton.overlap import overlapping

    assert overlapping(True) == {"DEPENDENT": True, "INTERPRETED": True}
    for call in KERNELS.values():
        _assert_same(call(torch.device("cpu"), True), call(torch.device("cpu"), False))


def _assert_same(found: Any, wanted: Any) -> None:
    if isinstance(found, torch.Tensor):
        found, wanted = (found,), (wanted,)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("names", KERNELS)
def test_gpu_they_give_the_same_behind_one_that_still_runs(names: str) -> None:
    from inference_pio.kernels.triton.overlap import may_overlap

    device = torch.device("cuda")
    wanted = KERNELS[names](device, False)
    for _ in range(20):
        _assert_same(KERNELS[names](device, may_overlap(device)), wanted)
