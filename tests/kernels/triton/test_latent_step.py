"""The kernels around latent attention against their definition: interpreted on odd sizes, compiled, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels import latent_step as plain
from inference_pio.kernels.latent_attention import naive_latent_attention
from inference_pio.kernels.latent_step import naive_absorb, naive_expand, naive_latent_row
from inference_pio.kernels.triton.experts_launch import RowLaunch
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
POSITIONS = 64


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    rows: int = 1
    heads: int = 4
    nope: int = 32
    value: int = 64
    width: int = 64
    rope: int = 32
    capacity: int = 12
    interleaved: bool = True
    dtype: torch.dtype = torch.float16
    absorb_launch: RowLaunch | None = None
    expand_launch: RowLaunch | None = None

    @property
    def sizes(self) -> dict[str, Any]:
        return {"heads": self.heads, "nope": self.nope, "interleaved": self.interleaved}


def made(case: Case, device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(case.width + case.rows)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    angles = torch.rand(POSITIONS, case.rope, generator=generator) * 6  # the halves of a row differ, to tell them apart
    both = case.width + case.rope
    return {
        "query": draw(case.rows, case.heads * (case.nope + case.rope) + 16)[:, :-16],
        "up": draw(case.heads * (case.nope + case.value), case.width) / case.width**0.5,
        "kv": draw(case.rows, both + 32)[:, 32:],
        "norm_weight": draw(case.width),
        "tables": (angles.cos().to(device), angles.sin().to(device)),
        "positions": torch.randint(POSITIONS, (case.rows,), generator=generator, dtype=torch.int32).to(device),
        "lengths": torch.tensor(case.lengths, dtype=torch.int32, device=device),
        "cache": draw(case.rows, case.capacity, 1, both),
        "attended": draw(case.rows, case.heads, case.width),
    }


def stored(case: Case, given: dict[str, Any]) -> dict[str, Any]:
    """What the parts that are about storing are called with."""
    names = ("kv", "norm_weight", "positions", "lengths")
    return {name: given[name] for name in names} | {
        "eps": 1e-6, "cos": given["tables"][0], "sin": given["tables"][1], "cache": given["cache"].clone(),
        "interleaved": case.interleaved,
    }  # fmt: skip


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.latent_step import absorb, absorb_and_store, expand, latent_store

    given = made(case, device)
    query, up, tables, positions = given["query"], given["up"], given["tables"], given["positions"]
    close = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5}[case.dtype]

    alone, together, expected = stored(case, given), stored(case, given), given["cache"].float()
    latent_store(**alone)
    launch = {"launch": case.absorb_launch}
    got = absorb_and_store(query, up, **together, heads=case.heads, nope=case.nope, **launch)
    row = naive_latent_row(
        given["kv"], given["norm_weight"], 1e-6, *tables, positions, interleaved=True
    )  # fmt: skip
    by_hand = stored(case, given)
    plain.latent_store(**by_hand)
    lengths = given["lengths"].expand(case.rows).tolist()
    for number, length in enumerate(lengths):
        if 1 <= length <= case.capacity:
            expected[number, length - 1, 0, : case.width] = row[number, : case.width]
            expected[number, length - 1, 0, case.width :] = by_hand["cache"][number, length - 1, 0, case.width :]
    assert torch.equal(alone["cache"], together["cache"])
    torch.testing.assert_close(alone["cache"].float(), expected, rtol=close, atol=close)
    if not (device == "cpu" and case.dtype is torch.bfloat16):  # the interpreter's rounding is not a GPU's
        assert torch.equal(alone["cache"][..., case.width :], by_hand["cache"][..., case.width :])

    room = torch.full_like(got[0], float("nan")), torch.full_like(got[1], float("nan"))
    again = absorb(query, up, *tables, positions, out=room, **case.sizes, **launch)
    wanted = naive_absorb(query, up, *tables, positions, **case.sizes)
    exact = plain.absorb(query, up, *tables, positions, **case.sizes)
    for one, other, place in zip(got, again, room, strict=True):
        assert other is place
        assert torch.equal(one, other)
    torch.testing.assert_close(got[0].float(), wanted[0], rtol=close, atol=close)
    if device == "cpu" and case.dtype is torch.bfloat16:
        torch.testing.assert_close(got[1].float(), exact[1].float(), rtol=close, atol=close)
    else:
        assert torch.equal(got[1], exact[1])

    values = torch.full((case.rows, case.heads * case.value), float("nan"), dtype=case.dtype, device=device)
    assert expand(given["attended"], up, case.nope, values, launch=case.expand_launch) is values
    torch.testing.assert_close(values.float(), naive_expand(given["attended"], up, case.nope), rtol=close, atol=close)


CASES = [
    Case((1,)),
    Case((12,), rows=3, interleaved=False),
    Case((5, 13, 0, 2), rows=4, heads=3, nope=20, value=24, width=48, rope=12),
    Case((3, 12), rows=2, heads=5, nope=33, value=7, width=40, rope=10, interleaved=False, dtype=torch.float32),
    Case((2,), rows=8, heads=2, absorb_launch=RowLaunch(16, 32, 1), expand_launch=RowLaunch(1, 64, 1)),
    Case(
        (7,), rows=2, heads=2, nope=40, value=33, absorb_launch=RowLaunch(16, 16, 2), expand_launch=RowLaunch(8, 16, 1)
    ),
    Case((9,), heads=2, nope=192, value=64, width=512, rope=64),
    Case((4, 4), rows=2, dtype=torch.bfloat16),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


def check_step(device: str = "cpu") -> None:
    """Store, absorb, attend and expand, over a cache that holds some tokens, against attention as it is defined."""
    from inference_pio.kernels.triton.latent_decode import latent_decode_attention
    from inference_pio.kernels.triton.latent_step import absorb_and_store, expand

    case = Case((70, 3), rows=2, capacity=128, heads=5, nope=24, value=40)
    given = made(case, device)
    arguments, by_hand = stored(case, given), stored(case, given)
    plain.latent_store(**by_hand)
    parts = [(one[:, :, 0, : case.width], one[:, :, 0, case.width :]) for one in (arguments["cache"], by_hand["cache"])]
    absorbed, turned = absorb_and_store(given["query"], given["up"], **arguments, heads=5, nope=24)
    attended = latent_decode_attention(absorbed, turned, *parts[0], given["lengths"], scale=0.1)
    got = expand(attended, given["up"], case.nope)
    nope = given["query"].unflatten(-1, (5, -1))[..., : case.nope]
    wanted = naive_latent_attention(
        nope[:, :, None], turned[:, :, None], *parts[1], given["up"], given["lengths"], scale=0.1
    )[:, :, 0]  # fmt: skip
    torch.testing.assert_close(got.float(), wanted.flatten(1), rtol=1e-2, atol=1e-2)


@needs_triton
def test_with_the_attention_between_they_are_a_step(interpreted: Callable[..., None]) -> None:
    interpreted(check_step)


@pytest.mark.gpu
def test_gpu_with_the_attention_between_they_are_a_step() -> None:
    check_step("cuda")


@needs_triton
@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("lengths", lambda one: one.long(), "lengths of torch.int64"),
        ("cache", lambda one: one[:, :, 0], "no place in a cache"),
        ("cache", lambda one: one.bfloat16(), "cache of torch.bfloat16"),
        ("positions", lambda one: one.long(), "positions in int32"),
        ("cos", lambda one: one[:, :8], "do not turn 32 numbers"),
        ("norm_weight", lambda one: one.float(), "all alike"),
        ("up", lambda one: one[:-1], "are not 4 heads of 32 and more"),
        ("query", lambda one: one[:, :-1], "are not 4 heads of 32 and more"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, changed: Callable[[torch.Tensor], torch.Tensor], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.latent_step import absorb_and_store, expand

    monkeypatch.setattr(support, "_device", lambda device: None)
    case = Case((1,))
    given = made(case, "cpu")
    arguments = stored(case, given) | {"query": given["query"], "up": given["up"], "heads": 4, "nope": 32}
    arguments[name] = changed(arguments[name])
    with pytest.raises(InvalidSetting, match=said):
        absorb_and_store(**arguments)
    with pytest.raises(InvalidSetting, match="do not expand"):
        expand(given["attended"], given["up"][:-1], 32)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tokens", [1, 8])
def test_they_compile_to_wide_loads_without_spilling(capability: int, tokens: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.latent_step import (
        absorb_and_store,
        absorb_kernel,
        expand,
        expand_kernel,
        latent_store,
        latent_store_kernel,
    )

    compiler.for_machine(capability, latent_store_kernel, absorb_kernel, expand_kernel)
    case = replace(FLASH, lengths=(1,) * tokens, rows=tokens, capacity=64)
    given = made(case, "cpu")
    latent_store(**stored(case, given))
    absorb_and_store(given["query"], given["up"], **stored(case, given), heads=case.heads, nope=case.nope)
    expand(given["attended"], given["up"], case.nope)
    store, absorbing, expanding = compiler.found
    for code in compiler.found:
        code.assert_it_fits(MACHINES[capability])
        assert code.registers <= 64, code
    assert store.counts["LDG 128"] == 2 * case.width * 2 // 16 // 32, store
    assert absorbing.counts["LDG 128"] >= case.nope * 64 * 2 // 16 // absorbing.threads, absorbing
    assert expanding.counts["LDG 128"] >= 4 * case.width * 2 // 16 // expanding.threads, expanding
    assert expanding.counts["LDG U16"] == 0, expanding


FLASH = Case((1,), heads=20, nope=192, value=256, width=512, rope=64, dtype=torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*CASES, FLASH, replace(FLASH, lengths=(3,) * 8, rows=8)], ids=str)
def test_gpu_they_are_exact_up_to_rounding(case: Case) -> None:
    check(case, "cuda")


@pytest.mark.gpu
def test_gpu_one_recorded_graph_serves_every_length() -> None:
    from inference_pio.kernels.triton.latent_step import absorb_and_store, expand

    case = replace(FLASH, lengths=(1, 1), rows=2, capacity=64)
    given = made(case, "cuda")
    arguments = stored(case, given) | {"query": given["query"], "up": given["up"], "heads": 20, "nope": 192}
    arguments["out"] = tuple(torch.empty(2, 20, width, device="cuda", dtype=case.dtype) for width in (512, 64))
    values = torch.empty(2, 20 * 256, device="cuda", dtype=case.dtype)

    def step() -> None:
        absorb_and_store(**arguments)
        expand(arguments["out"][0], given["up"], 192, values)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for length in (1, 17, 64):
        arguments["lengths"].copy_(torch.tensor([length, 65 - length]))
        arguments["positions"].copy_(torch.tensor([length // 2, 3]))
        arguments["cache"].zero_()
        graph.replay()
        for row, place in enumerate((length - 1, 64 - length)):
            filled = arguments["cache"][row, :, 0].any(-1).nonzero().flatten().tolist()
            assert filled == [place]
        wanted = naive_absorb(given["query"], given["up"], *given["tables"], arguments["positions"], **case.sizes)
        for one, its in zip(arguments["out"], wanted, strict=True):
            torch.testing.assert_close(one.float(), its, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(
            values.float(), naive_expand(arguments["out"][0], given["up"], 192), rtol=2e-2, atol=2e-2
        )
