"""The next token against torch's own argmax: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.next_token import naive_next_token
from tests.formats.help import seeded
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SHAPES = [(1, 1), (1, 7), (3, 2048), (2, 2049), (1, 9000), (8, 4100)]
AWKWARD = {
    "as they come": lambda logits: logits,
    "equals": lambda logits: logits.round(),
    "zeros of both signs": lambda logits: torch.where(logits > 0, -0.0, 0.0),
    "all barred": lambda logits: torch.full_like(logits, float("-inf")),
    "only the last not barred": lambda logits: torch.cat([logits[:, :-1] * float("inf"), logits[:, -1:]], 1).neg(),
    "no numbers": lambda logits: torch.where(logits > 0.5, float("nan"), logits * float("inf")),
}


def check(shape: tuple[int, int], kind: str, device: str = "cpu", dependent: bool = False) -> None:
    """Torch's token, everywhere; counters are ready for the next launch, and nothing beside is written."""
    from inference_pio.kernels.triton.next_token import NextTokenScratch, next_token

    rows, vocabulary = shape
    scratch = NextTokenScratch.of(rows, vocabulary, torch.device(device))
    for turn in range(2):
        wide = seeded(rows, vocabulary + 3).float().to(device)  # rows are apart, and begin anywhere in 16 bytes
        logits = wide[:, turn : turn + vocabulary]
        logits.copy_(AWKWARD[kind](logits.clone()))
        both = []
        for _ in range(2):
            tokens, given = torch.zeros(rows, dtype=torch.int64), torch.full((rows, 4), -1)
            positions, made, counts = (torch.arange(5, 5 + size, dtype=torch.int32) for size in (rows, 1, 2))
            both.append([tensor.to(device) for tensor in (tokens, given, positions, made, counts)])
        for entered in (False, True):
            (tokens, given, positions, made, counts), (found, gave, at, new, held) = both
            naive_next_token(logits, tokens, given[:, 2], positions, [made, counts] if entered else [made])
            next_token(
                logits, found, gave[:, 2], at, new, held if entered else None, scratch=scratch, dependent=dependent
            )
            for one, other in zip(*both, strict=True):
                assert torch.equal(one, other), (one, other)
    assert not scratch.arrived.any()


@needs_triton
@pytest.mark.parametrize("kind", list(AWKWARD))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_torchs_token_in_the_interpreter(
    shape: tuple[int, int], kind: str, interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, kind)


def refusals() -> None:
    from inference_pio.kernels.triton.next_token import next_token

    logits, token = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64)
    rows, one, two = (torch.zeros(size, dtype=torch.int32) for size in (2, 1, 2))
    for given, reason in (
        ((logits.bfloat16(), token, token, rows, one, two), "float32"),
        ((logits, token.int(), token, rows, one, two), "int64"),
        ((logits, token, token, rows.long(), one, two), "int32"),
        ((logits[0], token, token, rows, one, two), "takes logits"),
        ((logits[0, 0], token, token, rows, one, two), "takes logits"),
        ((logits[:, :0], token, token, rows, one, two), "takes logits"),
        ((logits, token[:1], token, rows, one, two), "a token a row"),
        ((logits, token, token, rows, rows, two), "a token a row"),
        ((logits, token, token, rows, one, one), "a token a row"),
        ((torch.zeros(8, 2).t(), token, token, rows, one, two), "side by side"),
    ):
        with pytest.raises(InvalidSetting, match=reason):
            next_token(*given)


@needs_triton
def test_what_it_cannot_serve_is_refused(interpreted: Callable[..., None]) -> None:
    interpreted(refusals)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.next_token import next_token, next_token_kernel

    compiler.for_machine(capability, next_token_kernel)
    token, counts = torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    next_token(
        torch.zeros(1, 151936), token, token.clone(), counts[:1], counts[1:], counts.clone(), dependent=capability >= 90
    )
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128"] >= 4, code
    if capability >= 90:
        assert not any(kind.startswith(("LDG", "STG")) for kind in code.order[: code.order.index("ACQBULK")])


@pytest.mark.gpu
@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("kind", list(AWKWARD))
@pytest.mark.parametrize("shape", [*SHAPES, (1, 151936), (32, 151936)], ids=str)
def test_gpu_it_is_torchs_token(shape: tuple[int, int], kind: str, dependent: bool) -> None:
    check(shape, kind, "cuda", dependent)
