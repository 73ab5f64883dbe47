"""The experts' kernels against their definition: interpreted on odd sizes, compiled at real ones, on a GPU."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.experts import naive_expert_down, naive_expert_gate_up, two
from inference_pio.kernels.fp8 import quantize_rows_fp8
from inference_pio.kernels.int4 import quantize_groups, words_of
from inference_pio.kernels.int8 import quantize_rows
from inference_pio.kernels.triton.experts_launch import RowLaunch
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.sweep import in_its_turn, rotating, turn_of_this_commit

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


@dataclass(frozen=True)
class Case:
    """`elsewhere`: so many of the chosen experts live elsewhere. `parted`: the shared expert's gate and up are two."""

    tokens: int
    width: int
    experts: int
    top_k: int
    inner: int
    shared: int = 0
    coded: bool = False
    fp8: bool = False
    group: int = 0
    dtype: torch.dtype = torch.bfloat16
    up_launch: RowLaunch | None = None
    down_launch: RowLaunch | None = None
    elsewhere: int = 0
    parted: bool = False
    residual: bool = True
    narrow_index: bool = True


def made(case: Case, device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(case.width + case.inner)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(device, case.dtype)

    found: dict[str, Any] = {
        "gate_up": draw(case.experts, 2 * case.inner, case.width),
        "down": draw(case.experts, case.width, case.inner),
        "shared_up": draw(2 * case.shared, case.width) if case.shared else None,
        "shared_down": draw(case.width, case.shared) if case.shared else None,
    }
    scales = dict.fromkeys(found)
    if case.coded:
        by_rows = quantize_rows_fp8 if case.fp8 else quantize_rows
        quantize = functools.partial(words, case.group) if case.group else by_rows
        quantized = {name: quantize(one) for name, one in found.items() if one is not None}
        scales |= {name: scale for name, (_, scale) in quantized.items()}
        found |= {name: codes for name, (codes, _) in quantized.items()}
    if case.parted:
        found["shared_up"], scales["shared_up"] = two(found["shared_up"]), two(scales["shared_up"])
        if not case.coded:
            scales["shared_up"] = None
    index = torch.stack([torch.randperm(case.experts, generator=generator)[: case.top_k] for _ in range(case.tokens)])
    index.view(-1)[: case.elsewhere] = case.experts + torch.arange(case.elsewhere)
    weight = torch.rand(case.tokens, case.top_k, generator=generator)
    x = torch.cat((draw(case.tokens, case.width), draw(case.tokens, case.width)), -1) * case.width**0.5
    return found | {
        "scales": scales,
        "index": (index.int() if case.narrow_index else index).to(device),
        "weight": weight.to(device, torch.float32 if case.shared else case.dtype),
        "x": x[:, : case.width],
        "residual": draw(case.tokens, case.width) if case.residual else None,
    }


def words(group: int, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, grids = quantize_groups(weight, group)
    return words_of(codes), grids


def run(
    given: dict[str, Any], first_product: Any, second_product: Any, hidden: torch.Tensor | None, **options: Any
) -> Any:
    """The first product, then the second of `hidden`, or else of what the first one gave."""
    scales = given["scales"]
    first = first_product(
        given["x"], given["gate_up"], given["index"], shared=given["shared_up"], scales=scales["gate_up"],
        shared_scales=scales["shared_up"], **options.get("up", {}),
    )  # fmt: skip
    return first, second_product(
        first if hidden is None else hidden, given["down"], given["index"], given["weight"],
        shared=given["shared_down"], residual=given["residual"], scales=scales["down"],
        shared_scales=scales["shared_down"], **options.get("down", {}),
    )  # fmt: skip


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.experts import expert_down, expert_gate_up

    given = made(case, device)
    # The interpreter's rounding to bfloat16 is not a GPU's, so there none is asked for at the end.
    kind = torch.float32 if device == "cpu" and case.dtype is torch.bfloat16 else case.dtype
    behind = case.top_k * case.inner + case.shared
    hidden = torch.full((case.tokens, behind), float("nan"), dtype=kind, device=device)
    result = torch.full((case.tokens, case.width), float("nan"), dtype=kind, device=device)
    read = (torch.randn(case.tokens, behind, generator=torch.Generator().manual_seed(1)) / 2).to(device, case.dtype)
    for token, slot in (given["index"] >= case.experts).nonzero().tolist():  # what stands there is not read
        read[token, slot * case.inner : (slot + 1) * case.inner] = float("nan")
    options = {"up": {"out": hidden, "launch": case.up_launch}, "down": {"out": result, "launch": case.down_launch}}
    run(given, expert_gate_up, expert_down, read, **options)
    wanted = run(given, naive_expert_gate_up, naive_expert_down, read)
    exact = 1e-4 if case.group else 1e-5  # products with codes of 128 and more are taken off again
    close = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: exact}[case.dtype]
    torch.testing.assert_close(hidden.float(), wanted[0], rtol=close, atol=close)
    end = exact if kind is torch.float32 else close
    torch.testing.assert_close(result.float(), wanted[1], rtol=end, atol=end)


ODD, FEW = RowLaunch(4, 32, 1), RowLaunch(16, 64, 1)
MANY = RowLaunch(16, 64, 4)
"""So many rows a program that the interpreter has few of them to walk."""
CASES = [
    Case(1, 128, 16, 4, 128, shared=128, up_launch=MANY),
    Case(3, 72, 5, 3, 20, dtype=torch.float32),
    Case(8, 128, 16, 4, 128, narrow_index=False, up_launch=MANY, down_launch=MANY),
    Case(2, 100, 7, 1, 33, shared=20, parted=True, up_launch=ODD, down_launch=ODD),
    Case(
        2, 96, 6, 5, 48, shared=100, elsewhere=4, dtype=torch.float16, up_launch=MANY, down_launch=RowLaunch(2, 16, 2)
    ),
    Case(4, 64, 9, 2, 24, elsewhere=8, residual=False, up_launch=RowLaunch(16, 16, 1)),
    Case(1, 64, 4, 4, 32, shared=64, coded=True),
    Case(2, 64, 5, 2, 32, shared=32, coded=True, fp8=True),
    Case(5, 80, 6, 3, 40, coded=True, fp8=True, elsewhere=2, up_launch=ODD, down_launch=ODD),
    Case(5, 80, 6, 3, 40, shared=40, parted=True, coded=True, elsewhere=2, up_launch=ODD, down_launch=ODD),
    Case(2, 64, 5, 2, 32, shared=32, coded=True, group=32, up_launch=FEW, down_launch=FEW),
    Case(1, 64, 6, 3, 32, shared=64, parted=True, coded=True, group=32, elsewhere=1, up_launch=FEW),
    pytest.param(
        Case(3, 256, 7, 3, 128, coded=True, group=64, dtype=torch.float32, up_launch=MANY, down_launch=MANY),
        marks=pytest.mark.slow,
    ),
    Case(1, 2048, 3, 2, 16, shared=16, down_launch=MANY),
    Case(1, 64, 3, 2, 768, dtype=torch.float16, up_launch=MANY),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


def check_mixed() -> None:
    """Weights of one kind beside codes of the other, and a residual that is overwritten."""
    from inference_pio.kernels.triton.experts import expert_down, expert_gate_up

    case = Case(2, 48, 5, 2, 16, shared=24, coded=True, dtype=torch.float32)
    coded, plain = made(case, "cpu"), made(replace(case, coded=False), "cpu")
    for given, other in ((coded, plain), (plain, coded)):
        mixed = dict(given, shared_up=other["shared_up"], shared_down=other["shared_down"])
        mixed["scales"] = dict(given["scales"], shared_up=other["scales"]["shared_up"])
        mixed["scales"]["shared_down"] = other["scales"]["shared_down"]
        wanted = run(mixed, naive_expert_gate_up, naive_expert_down, None)
        mixed["residual"] = mixed["residual"].clone()
        got = run(mixed, expert_gate_up, expert_down, None, down={"out": mixed["residual"]})
        assert got[1] is mixed["residual"]
        for one, its in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, its, rtol=1e-5, atol=1e-5)


def nothing_is_read_behind_the_tokens() -> None:
    """Of three experts four vectors are taken, of which the last one is not there."""
    from inference_pio.kernels.triton.experts import expert_down
    from tests.kernels.triton.test_gemv import at_the_end_of_memory

    for case in (Case(1, 64, 5, 3, 1024, coded=True, group=32), Case(1, 64, 5, 3, 1024, coded=True)):
        given = made(replace(case, dtype=torch.float32), "cpu")
        hidden = torch.randn(1, 3 * case.inner)
        how = {"scales": given["scales"]["down"]}
        wanted = naive_expert_down(hidden, given["down"], given["index"], given["weight"], **how)
        got = expert_down(at_the_end_of_memory(hidden), given["down"], given["index"], given["weight"], **how)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@in_its_turn(0, of=3)
@needs_triton
def test_nothing_is_read_behind_the_tokens() -> None:
    code = f"from {__name__} import *; nothing_is_read_behind_the_tokens()"  # where it is, the process ends
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@needs_triton
def test_codes_stand_beside_weights(interpreted: Callable[..., None]) -> None:
    interpreted(check_mixed)


@needs_triton
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.experts import expert_down, expert_gate_up

    monkeypatch.setattr(support, "_device", lambda device: None)
    given = made(Case(2, 64, 5, 2, 32, coded=True), "cpu")
    x, index, weight, scales = given["x"], given["index"], given["weight"], given["scales"]
    with pytest.raises(InvalidSetting, match="one scale a row"):
        expert_gate_up(x, given["gate_up"], index)
    with pytest.raises(InvalidSetting, match="side by side"):
        expert_gate_up(x, given["gate_up"], index, scales=scales["gate_up"].T.contiguous().T)
    with pytest.raises(InvalidSetting, match="not go with experts that take 64"):
        expert_gate_up(x[:1], given["gate_up"], index, scales=scales["gate_up"])
    with pytest.raises(InvalidSetting, match="not go with experts that take 64"):
        expert_down(x[:, :60], given["down"], index, weight, scales=scales["down"])
    with pytest.raises(InvalidSetting, match="do not go with an index"):
        expert_down(x, given["down"], index, weight[:, :1], scales=scales["down"])
    shared, both = torch.zeros(2, 64, 64, dtype=torch.int8), torch.ones(2, 64, dtype=torch.bfloat16)
    with pytest.raises(InvalidSetting, match="codes of two kinds"):
        expert_gate_up(
            x, given["gate_up"], index, scales=scales["gate_up"], shared=(shared[0], shared[1].view(torch.uint8)),
            shared_scales=(both[0], both[1]),
        )  # fmt: skip
    with pytest.raises(InvalidSetting, match="all alike"):
        expert_gate_up(x.half(), given["gate_up"].bfloat16(), index)


REAL = {
    "30B-A3B": Case(1, 2048, 128, 8, 768),
    "GLM-4.7-Flash": Case(1, 2048, 64, 4, 1536, shared=1536),
    "GLM-4.7": Case(1, 5120, 160, 8, 1536, shared=1536),
}


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int8, torch.int32], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        *rotating(["30B-A3B", "GLM-4.7-Flash"], turn_of_this_commit(), 1),
        pytest.param("GLM-4.7", marks=pytest.mark.slow),
    ],
)
def test_they_compile_to_wide_loads_without_spilling(
    name: str, kind: torch.dtype, capability: int, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton.experts import (
        expert_down,
        expert_down_kernel,
        expert_gate_up,
        expert_gate_up_kernel,
    )

    compiler.for_machine(capability, expert_gate_up_kernel, expert_down_kernel)
    case, group = REAL[name], 128
    shapes = {"gate_up": (1, 2 * case.inner, case.width), "down": (1, case.width, case.inner)}
    if case.shared:
        shapes |= {"shared_up": (2 * case.shared, case.width), "shared_down": (case.width, case.shared)}
    packed = 8 if kind is torch.int32 else 1
    weights = {name: torch.zeros(*shape[:-1], shape[-1] // packed, dtype=kind) for name, shape in shapes.items()}
    scales = dict.fromkeys(weights)
    if kind is not torch.bfloat16:
        for name, shape in shapes.items():
            grids = (*shape[:-2], shape[-1] // group, shape[-2], 2)
            scales[name] = torch.ones(grids if packed == 8 else shape[:-1], dtype=torch.bfloat16)
    nothing = dict.fromkeys(("shared_up", "shared_down"))
    row = torch.zeros(1, case.width, dtype=torch.bfloat16)
    given = nothing | weights | {"scales": nothing | scales, "x": row, "residual": row}
    given |= {"index": torch.zeros(1, case.top_k, dtype=torch.int32), "weight": torch.ones(1, case.top_k)}
    run(given, expert_gate_up, expert_down, None)
    up, down = compiler.found
    element = kind.itemsize / packed
    for code, columns, read in (
        (up, case.width, (2 + 2 * bool(case.shared)) * case.width),
        (down, case.inner, case.top_k * case.inner + case.shared),
    ):
        code.assert_it_fits(MACHINES[capability])
        assert code.counts["LDG 128"] >= read * element / 16 / code.threads, (columns, code)
        assert code.counts["LDG U16"] <= 5, code  # scales, and the residual
        assert not code.counts["LDG U8"], code
        # of eight experts of half a byte, measured: words two by two for twice the rows take 8.5 us, four by four 8.9
        assert not code.counts["LDG 64"] or (code is down and packed > 1 and case.top_k >= 8), code
        assert code.registers <= 128, code


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_they_are_exact_up_to_rounding(case: Case) -> None:
    check(case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("name", REAL)
def test_gpu_one_recorded_graph_serves_every_choice(name: str, tokens: int, coded: bool) -> None:
    from inference_pio.kernels.triton.experts import expert_down, expert_gate_up

    case = replace(REAL[name], tokens=tokens, coded=coded, experts=16)
    given = made(case, "cuda")
    hidden = torch.empty(tokens, case.top_k * case.inner + case.shared, device="cuda", dtype=case.dtype)
    result = torch.empty(tokens, case.width, device="cuda", dtype=case.dtype)
    options = {"up": {"out": hidden}, "down": {"out": result}}
    run(given, expert_gate_up, expert_down, None, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(given, expert_gate_up, expert_down, None, **options)
    for turn in range(4):
        given["index"].copy_((given["index"] + turn) % 17)  # 16 lives elsewhere
        graph.replay()
        wanted = run(given, naive_expert_gate_up, naive_expert_down, None)
        torch.testing.assert_close(hidden.float(), wanted[0], rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(result.float(), wanted[1], rtol=3e-2, atol=3e-2)
