"""The check that a backend must pass before it serves: each phase against the float32 reference, on odd lengths."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from inference_pio.compat import has_varlen_attention
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.attention_backends import HeadShape, run
from inference_pio.kernels.attention_choice import CAUSAL, FLASH, WHOLE, Phase
from inference_pio.kernels.packed_attention import naive_packed_attention, packed_attention, packed_varlen_attention

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""What rounding explains, of a number or of one, whichever is larger."""
FLOAT32_ON_A_GPU = 1e-4
"""Its matrix units take float32 in three parts of fewer bits."""
KEY_HEADS = (4, 8)
"""On a GPU, beside the model's own number: a cuDNN is known that is wrong below 8 key heads alone."""
ON_A_GPU = 7
"""How much longer everything is there, where blocks hold 128; on a CPU the check of all phases takes under a second."""
PICTURES = (9, 15, 9, 5)


@dataclass(frozen=True)
class Problem:
    """Sizes, and the keys that each of two rows sees: from `starts` on, to `ends`; `hidden` scatters holes."""

    queries: int
    keys: int
    starts: tuple[int, int] | None = None
    ends: tuple[int, int] | None = None
    hidden: bool = False

    def times(self, factor: int) -> Problem:
        """The same, longer; one query stays one."""
        starts, ends = (bound and (bound[0] * factor, bound[1] * factor) for bound in (self.starts, self.ends))
        return Problem(
            self.queries if self.queries == 1 else self.queries * factor, self.keys * factor, starts, ends, self.hidden
        )


PROBLEMS: dict[Phase, tuple[Problem, ...]] = {
    Phase.PREFILL: (Problem(37, 37),),
    Phase.CAPTURED_PREFILL: (Problem(37, 37),),
    Phase.PADDED_PREFILL: (Problem(37, 37, (0, 5)), Problem(11, 45, (3, 0))),
    Phase.CHUNK: (Problem(11, 45),),
    Phase.DECODE: (Problem(1, 67),),
    Phase.PADDED_DECODE: (Problem(1, 67, (0, 35)),),
    Phase.STATIC_DECODE: (Problem(1, 80, (0, 3), (67, 67)),),
    Phase.MASKED: (Problem(11, 45, hidden=True), Problem(37, 90, (0, 65), (64, 90))),  # the other by whole tiles
    Phase.BIASED: (Problem(11, 45, hidden=True), Problem(37, 90, (0, 65), (64, 90))),
    Phase.MASKED_DECODE: (Problem(1, 67, hidden=True),),
    Phase.VISION: (Problem(37, 37),),
}


@functools.cache
def why_it_fails(backend: str, phase: Phase, shape: HeadShape, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with a backend in a phase on this machine, or None; found out once in a process."""
    others = KEY_HEADS if device.type == "cuda" else ()
    shapes = dict.fromkeys((shape, *(shape.with_key_heads(count) for count in others)))
    with torch.inference_mode(False), torch.no_grad():
        for tried in shapes:
            try:
                error = max(_errors(backend, phase, tried, dtype, device), key=lambda one: (one != one, one))
            except torch.OutOfMemoryError:
                raise
            except Exception as raised:  # whatever a kernel raises is the reason why it does not serve
                return f"it does not run here ({(str(raised) or repr(raised)).splitlines()[0]})"
            if not error <= _tolerance(dtype, device):
                return f"it is off by {error:.2g} from the float32 reference with {tried.key_heads} key heads"
    return None


def _errors(backend: str, phase: Phase, shape: HeadShape, dtype: torch.dtype, device: torch.device) -> Iterator[float]:
    factor = ON_A_GPU if device.type == "cuda" else 1
    for problem in (one.times(factor) for one in PROBLEMS[phase]):
        query, key, value = _tensors(problem.queries, problem.keys, shape, 2, dtype, device)
        mask = _mask(phase, problem, device)
        starts, ends = (_int32(bound, device) for bound in (problem.starts, problem.ends))
        given = mask if phase is not Phase.BIASED or mask is None else _bias(mask)
        got = run(backend, phase, query, key, value, mask=given, starts=starts, ends=ends)
        true = naive_attention(query, key, value, given, causal=phase in WHOLE)
        difference = _difference(got, true)
        if mask is not None:
            difference = difference.masked_fill(~mask.any(-1, keepdim=True), 0.0)  # nobody uses what padding sees
        yield difference.max().item()
    if phase is Phase.VISION:
        yield _packed_error(backend, shape, dtype, device)


def _packed_error(backend: str, shape: HeadShape, dtype: torch.dtype, device: torch.device) -> float:
    query, key, value = _tensors(sum(PICTURES), sum(PICTURES), shape, 1, dtype, device)
    if backend == FLASH and has_varlen_attention():
        bounds = torch.tensor((0, *PICTURES), device=device).cumsum(0, dtype=torch.int32)
        got = packed_varlen_attention(query, key, value, bounds, max(PICTURES))
    else:
        got = packed_attention(lambda *rows: run(backend, Phase.VISION, *rows), query, key, value, PICTURES)
    return _difference(got, naive_packed_attention(query, key, value, PICTURES)).max().item()


def _difference(got: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return (got.float() - true).abs() / true.abs().clamp(min=1)


def _tolerance(dtype: torch.dtype, device: torch.device) -> float:
    if dtype == torch.float32 and device.type == "cuda":
        return FLOAT32_ON_A_GPU
    return TOLERANCE.get(dtype, 1e-5)


def _tensors(
    queries: int, keys: int, shape: HeadShape, rows: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    sizes = (
        (rows, shape.heads, queries, shape.head_dim),
        (rows, shape.key_heads, keys, shape.head_dim),
        (rows, shape.key_heads, keys, shape.value_dim),
    )
    return [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]


def _mask(phase: Phase, problem: Problem, device: torch.device) -> torch.Tensor | None:
    """The boolean mask [2, 1, S, L] of a problem; None where nothing but the future is hidden."""
    if phase in (*WHOLE, Phase.DECODE, Phase.VISION):
        return None
    seen = torch.ones(2, 1, problem.queries, problem.keys, dtype=torch.bool)
    if phase in CAUSAL:
        seen = seen.tril(problem.keys - problem.queries)
    if problem.hidden:
        seen = torch.rand(seen.shape, generator=torch.Generator().manual_seed(1)) > 0.3
        seen[..., 0] = True
    places = torch.arange(problem.keys)
    for bound, hides in ((problem.starts, places.__lt__), (problem.ends, places.__ge__)):
        if bound is not None:
            seen = seen & ~hides(torch.tensor(bound)[:, None])[:, None, None]
    return seen.to(device)


def _bias(mask: torch.Tensor) -> torch.Tensor:
    """An additive mask in float32, whatever the queries are: one is known to be misread beside bfloat16."""
    noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)).to(mask.device)
    return noise.masked_fill(~mask, torch.finfo(torch.float32).min)


def _int32(numbers: tuple[int, int] | None, device: torch.device) -> torch.Tensor | None:
    return None if numbers is None else torch.tensor(numbers, dtype=torch.int32, device=device)
