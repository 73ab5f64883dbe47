"""The routing kernel against its definition: interpreted on awkward sizes, compiled at real ones, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels import routing as plain
from inference_pio.kernels.routing import RoutingRule, naive_route
from inference_pio.kernels.triton.experts_launch import RowLaunch
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.sweep import in_its_turn

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
FLASH = RoutingRule(4, "sigmoid", scale=1.8, norm_floor=1e-20)
GROUPED = RoutingRule(8, "sigmoid", scale=2.5, groups=8, top_groups=4, norm_floor=1e-20)


@dataclass(frozen=True)
class Case:
    tokens: int
    width: int
    experts: int
    rule: RoutingRule
    corrected: bool = False
    normed: bool = True
    dtype: torch.dtype = torch.bfloat16
    launch: RowLaunch | None = None
    strided: bool = False
    long_index: bool = False


def tensors(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor | None]]:
    """Tokens, a router whose logits are well apart for every token, and the rest."""
    generator = torch.Generator().manual_seed(case.width + case.experts)
    x = torch.randn(case.tokens, case.width, generator=generator)
    steps = torch.stack([torch.randperm(case.experts, generator=generator) for _ in range(case.tokens)], 1).float()
    norm = torch.rand(case.width, generator=generator) + 0.5
    seen = x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * norm if case.normed else x
    gate = (steps / case.experts - 0.5) * 6.0 @ torch.linalg.pinv(seen.double()).float().T
    correction = torch.randint(-2, 3, (case.experts,), generator=generator) * 0.25 if case.corrected else None
    x = torch.cat((x, x), -1).to(device, case.dtype) if case.strided else x.to(device, case.dtype)
    rest = {"norm_weight": norm.to(device, case.dtype) if case.normed else None}
    rest["correction"] = None if correction is None else correction.to(device)
    return x[:, : case.width], gate.to(device, case.dtype), rest


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.routing import RoutingScratch, empty_routed, route

    x, gate, rest = tensors(case, device)
    wanted = naive_route(x, gate, case.rule, eps=1e-6, **rest)
    scratch = RoutingScratch.of(case.tokens, case.experts, x.device)
    scratch.logits.fill_(float("nan"))
    out = empty_routed(x, case.rule, normalised=case.normed)
    if case.long_index:
        out = out._replace(index=out.index.long())
    for _ in range(2):  # the counters are zero again
        out.index.fill_(-1)
        out.weight.fill_(float("nan"))
        got = route(x, gate, case.rule, eps=1e-6, out=out, scratch=scratch, launch=case.launch, **rest)
        assert got is out
        assert not bool(scratch.arrived.any())
    close = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}[case.dtype]
    torch.testing.assert_close(got.weight.float(), wanted.weight, rtol=close, atol=close)
    assert got.index.tolist() == wanted.index.tolist()
    if case.normed:
        torch.testing.assert_close(got.normed.float(), wanted.normed, rtol=close, atol=1e-6)
    else:
        assert got.normed is x


QWEN = RoutingRule(4)
CASES = [
    Case(1, 128, 16, QWEN),
    Case(3, 96, 20, RoutingRule(3, normalise=False), launch=RowLaunch(1, 128, 1)),
    Case(8, 200, 33, RoutingRule(8, scale=0.5), launch=RowLaunch(4, 256, 2)),
    Case(2, 64, 7, RoutingRule(7), normed=False, dtype=torch.float32),
    Case(4, 72, 24, replace(FLASH, top_k=1), corrected=True, dtype=torch.float16),
    Case(5, 128, 16, FLASH, corrected=True, strided=True, long_index=True),
    Case(2, 100, 24, replace(GROUPED, top_k=6, groups=6, top_groups=3), corrected=True, dtype=torch.float32),
    Case(3, 40, 160, GROUPED, dtype=torch.float32, launch=RowLaunch(8, 64, 1)),
    Case(1, 2048, 64, FLASH, corrected=True),
    Case(1, 1, 2, RoutingRule(1), dtype=torch.float32),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_chooses_as_defined_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


def check_roundings(dtype: torch.dtype = torch.float16, device: str = "cpu") -> None:
    """Of random tokens, whose experts are not kept apart, all go where the plain path sends them."""
    from inference_pio.kernels.triton.routing import route

    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x, gate, norm = draw(64, 96), draw(16, 96) / 8, draw(96)
    for rule in (QWEN, FLASH):
        got, wanted = (one(x, gate, rule, norm_weight=norm, eps=1e-6) for one in (route, plain.route))
        differ = got.normed != wanted.normed  # where the order of the sum of squares moved a factor by its last bit
        assert differ.float().mean() < 0.001
        order, its = got.index.argsort(), wanted.index.argsort()
        same = got.index.gather(1, order) == wanted.index.gather(1, its)
        assert same.all(1).float().mean() > 0.96  # logits of 16 bits tie, and of those torch takes any
        weight, told = got.weight.gather(1, order)[same].float(), wanted.weight.gather(1, its)[same].float()
        if rule.scoring == "softmax":  # a third of them would differ by a missing rounding
            assert (weight != told).float().mean() < 0.02
        else:  # one would make 4e-5 in float16
            assert ((weight - told).abs() / told).mean() < 5e-6


@in_its_turn(2, of=3)
@needs_triton
def test_it_rounds_where_the_library_rounds(interpreted: Callable[..., None]) -> None:
    interpreted(check_roundings)


def check_equal_scores() -> None:
    from inference_pio.kernels.triton.routing import route

    x, gate = torch.ones(1, 2), torch.ones(12, 2)
    assert route(x, gate, RoutingRule(3)).index.tolist() == [[0, 1, 2]]
    gate[:3] = -1.0
    grouped = RoutingRule(2, "sigmoid", groups=4, top_groups=2)
    assert route(x, gate, grouped).index.tolist() == naive_route(x, gate, grouped).index.tolist() == [[3, 4]]


@needs_triton
def test_of_equal_scores_the_lowest_number_wins(interpreted: Callable[..., None]) -> None:
    interpreted(check_equal_scores)


@needs_triton
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.routing import route

    monkeypatch.setattr(support, "_device", lambda device: None)
    with pytest.raises(InvalidSetting, match="all alike"):
        route(torch.zeros(1, 64), torch.zeros(8, 64, dtype=torch.bfloat16), QWEN)
    with pytest.raises(InvalidSetting, match="does not go with 3 experts"):
        route(torch.zeros(1, 64), torch.zeros(3, 64), QWEN)
    with pytest.raises(InvalidSetting, match="in one step: 32 columns for 64"):
        route(torch.zeros(1, 64), torch.zeros(8, 64), QWEN, launch=RowLaunch(1, 32, 1))


REAL = [(128, 2048, RoutingRule(8)), (64, 2048, FLASH), (160, 5120, replace(FLASH, top_k=8)), (160, 5120, GROUPED)]
SMALL = [(16, 128, QWEN), (16, 128, FLASH)]


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("experts", "width", "rule"), REAL + SMALL)
def test_it_compiles_to_wide_loads_without_spilling(
    capability: int, experts: int, width: int, rule: RoutingRule, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton.routing import route, route_kernel

    compiler.for_machine(capability, route_kernel)
    x, gate = torch.zeros(1, width, dtype=torch.bfloat16), torch.zeros(experts, width, dtype=torch.bfloat16)
    correction = torch.zeros(experts) if rule.scoring == "sigmoid" else None
    route(x, gate, rule, correction=correction, norm_weight=x[0], eps=1e-6)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.registers <= 64, code
    if width >= 1024:
        loads = max(2048, 1 << (width - 1).bit_length()) * 2 // 16 // code.threads
        useful = -(-width * 2 // 16 // code.threads)
        assert 3 * useful <= code.counts["LDG 128"] <= 3 * loads, code  # each of token, gate and norm once
        assert code.counts["LDG U16"] == 0, code


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_it_chooses_as_defined(case: Case) -> None:
    check(case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_it_rounds_where_the_library_rounds(dtype: torch.dtype) -> None:
    check_roundings(dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("experts", "width", "rule"), REAL)
@pytest.mark.parametrize("tokens", [1, 8])
def test_gpu_one_recorded_graph_serves_every_token(experts: int, width: int, rule: RoutingRule, tokens: int) -> None:
    from inference_pio.kernels.triton.routing import RoutingScratch, empty_routed, route

    case = Case(tokens, width, experts, rule, corrected=rule.scoring == "sigmoid")
    x, gate, rest = tensors(case, "cuda")
    scratch, out = RoutingScratch.of(tokens, experts, x.device), empty_routed(x, rule, normalised=True)
    given = {"eps": 1e-6, "out": out, "scratch": scratch, **rest}
    route(x, gate, rule, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        route(x, gate, rule, **given)
    for turn in range(20):
        x.copy_(x.roll(1, 0))
        out.index.fill_(-1)
        graph.replay()
        assert out.index.tolist() == naive_route(x, gate, rule, eps=1e-6, **rest).index.tolist(), turn
