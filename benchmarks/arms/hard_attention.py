"""Where the library's default attention is bad: growing caches, padded batches, masks over shared heads, many pictures.

Both arms call what a model's layer calls, with the mask that the model would make: the library's, and ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms import library
from benchmarks.arms.library import Attention
from benchmarks.arms.problem import Inputs, KernelArm, Problem, Run, relative_error
from benchmarks.suites import Suite
from inference_pio.kernels.attention import naive_attention

STEPS = 64
GROWING = "cache that grows"


@dataclass(frozen=True)
class Sizes:
    """Tokens of each problem; those of a smoke run are few."""

    grown: int = 4096
    batch: int = 8
    padded: int = 2048
    decoded: int = 4096
    masked: int = 8192
    pictures: int = 64
    patches: int = 256
    steps: int = STEPS

    @classmethod
    def of(cls, smoke: bool) -> Sizes:
        return cls(20, 2, 24, 32, 32, 3, 16, 3) if smoke else cls()


def _attention(ours: bool) -> Callable[[Problem, torch.device, bool], Run]:
    def make(problem: Problem, device: torch.device, smoke: bool) -> Run:
        if problem["kind"] == "pictures":
            return _pictures_run(library.vision(device, ours=ours, smoke=smoke))
        found = (library.optimized if ours else library.plain)(*problem["heads"], device)
        if problem["kind"] == GROWING:
            return _growing_run(found, problem["steps"])
        return _masked_run(found, problem)

    return make


def _growing_run(found: Attention, steps: int) -> Run:
    """A token after another, joined to the cache as the library's dynamic cache joins it; it goes on growing."""
    state: dict[str, Tensor] = {}

    def run(query: Tensor, key: Tensor, value: Tensor, new: Tensor) -> Tensor:
        keys, values = state.get("key", key), state.get("value", value)
        for step in range(steps):
            token = new[:, :, step : step + 1]
            keys, values = torch.cat([keys, token], -2), torch.cat([values, token], -2)
            out = found.attention(query, keys, values, None)
        state["key"], state["value"] = keys, values
        return out

    return run


def _masked_run(found: Attention, problem: Problem) -> Run:
    """The mask is made once, as a model makes it once for all its layers."""
    made: dict[int, Any] = {}

    def run(query: Tensor, key: Tensor, value: Tensor, told: Tensor) -> Tensor:
        if id(told) not in made:
            made.clear()
            made[id(told)] = told, found.causal_mask(told, query.shape[2]) if told.dim() == 2 else told
        return found.attention(query, key, value, made[id(told)][1])

    return run


def _pictures_run(found: Attention) -> Run:
    def run(hidden: Tensor, bounds: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        return found.module(hidden, cu_seqlens=bounds, position_embeddings=(cosines, sines))  # type: ignore[no-any-return]

    return run


ARMS: dict[str, KernelArm] = {
    "default": KernelArm("the library's default (SDPA)", _attention(False)),
    "pio": KernelArm("inference-pio flash_attention", _attention(True)),
}


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    sizes = Sizes.of(smoke)
    return [
        _growing(suite.heads, sizes),
        _padded(suite.heads, sizes.batch, sizes.padded, sizes.padded),
        _padded(suite.heads, sizes.batch, sizes.decoded, 1),
        _masked(suite.heads, sizes.masked, torch.bool),
        _masked(suite.heads, sizes.masked, torch.float32),
        _pictures(sizes, smoke),
    ]


def _growing(heads: tuple[int, int, int], sizes: Sizes) -> Problem:
    def draw(device: torch.device) -> Inputs:
        query, key, value = _tensors(heads, 1, 1, sizes.grown, device)
        return query, key, value, _random((1, heads[1], sizes.steps, heads[2]), 2, device)

    def error(out: Tensor, inputs: Inputs) -> float:
        query, key, value, new = inputs
        keys, values = torch.cat([key, new], -2), torch.cat([value, new], -2)
        return relative_error(out, naive_attention(query, keys, values).transpose(1, 2))

    work = sizes.steps * 4.0 * heads[1] * heads[2] * sizes.grown
    given = {"kind": GROWING, "heads": heads, "steps": sizes.steps}
    return Problem(f"{GROWING} from {sizes.grown}", "GB/s", work, draw, error, given, once=True)


def _padded(heads: tuple[int, int, int], batch: int, tokens: int, queries: int) -> Problem:
    """Rows of a batch that begin behind padding: a quarter, a half, ... of their tokens."""
    pads = [tokens * row // (2 * batch) for row in range(batch)]

    def draw(device: torch.device) -> Inputs:
        present = torch.ones(batch, tokens, dtype=torch.long, device=device)
        for row, pad in enumerate(pads):
            present[row, :pad] = 0
        return *_tensors(heads, batch, queries, tokens, device), present

    def error(out: Tensor, inputs: Inputs) -> float:
        """Of real tokens: what padding gets is nobody's business. A head at a time: all scores would not fit."""
        query, key, value, _ = inputs
        worst, group = 0.0, heads[0] // heads[1]
        for row, pad in enumerate(pads):
            own = slice(max(0, pad - (tokens - queries)), None)
            for head in range(heads[1]):
                mine = slice(head * group, (head + 1) * group)
                wanted = naive_attention(
                    query[row : row + 1, mine, own], key[row : row + 1, head : head + 1, pad:],
                    value[row : row + 1, head : head + 1, pad:], causal=queries > 1,
                )  # fmt: skip
                worst = max(worst, relative_error(out[row : row + 1, own, mine], wanted.transpose(1, 2)))
        return worst

    real = [tokens - pad for pad in pads]
    given = {"kind": "padded", "heads": heads}
    if queries == 1:
        work = sum(4.0 * heads[1] * heads[2] * n for n in real)
        return Problem(f"decode behind padding, {batch} x {tokens}", "GB/s", work, draw, error, given)
    work = sum(2.0 * heads[0] * heads[2] * n * n for n in real)
    return Problem(f"prompts behind padding, {batch} x {tokens}", "TFLOP/s", work, draw, error, given)


def _masked(heads: tuple[int, int, int], tokens: int, dtype: torch.dtype) -> Problem:
    """Four documents side by side, each causal: a boolean mask, or zeros and minus infinity in float32."""

    def seen(device: torch.device) -> Tensor:
        document = torch.arange(tokens, device=device) * 4 // tokens
        return (document[:, None] == document[None, :]).tril()[None, None]

    def draw(device: torch.device) -> Inputs:
        mask = seen(device)
        if dtype != torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
        return *_tensors(heads, 1, tokens, tokens, device), mask

    def error(out: Tensor, inputs: Inputs) -> float:
        query, key, value, _ = inputs
        mask, worst, group = seen(query.device), 0.0, heads[0] // heads[1]
        for head in range(heads[1]):
            mine = slice(head * group, (head + 1) * group)
            wanted = naive_attention(query[:, mine], key[:, head : head + 1], value[:, head : head + 1], mask)
            worst = max(worst, relative_error(out[:, :, mine], wanted.transpose(1, 2)))
        return worst

    word = "boolean" if dtype == torch.bool else "float32"
    work = 4 * 2.0 * heads[0] * heads[2] * (tokens / 4) ** 2
    return Problem(f"{word} mask, {tokens}", "TFLOP/s", work, draw, error, {"kind": "masked", "heads": heads})


def _pictures(sizes: Sizes, smoke: bool) -> Problem:
    """A layer of the picture tower, projections and all: patches of one picture see one another."""
    total = sizes.pictures * sizes.patches

    def draw(device: torch.device) -> Inputs:
        found = _reference_vision(device, smoke)
        width = found.config.hidden_size // found.config.num_heads
        bounds = torch.arange(0, total + 1, sizes.patches, dtype=torch.int32, device=device)
        angles = _random((total, width // 2), 3, device).float().repeat(1, 2)
        return _random((total, found.config.hidden_size), 4, device), bounds, angles.cos(), angles.sin()

    def error(out: Tensor, inputs: Inputs) -> float:
        hidden, _, cosines, sines = inputs
        module = _reference_vision(hidden.device, smoke).module
        own = torch.tensor([0, sizes.patches], dtype=torch.int32, device=hidden.device)
        worst = 0.0
        for place in range(0, total, sizes.patches):
            rows = slice(place, place + sizes.patches)
            turned = (cosines[rows], sines[rows])
            wanted = module(hidden[rows].float(), cu_seqlens=own, position_embeddings=turned)
            worst = max(worst, relative_error(out[rows], wanted))
        return worst

    config = library.VISION | (library.TINY_VISION if smoke else {})
    work = 4.0 * sizes.pictures * sizes.patches**2 * config["hidden_size"]
    name = f"{sizes.pictures} pictures of {sizes.patches} patches"
    return Problem(name, "TFLOP/s", work, draw, error, {"kind": "pictures"})


@functools.cache
def _reference_vision(device: torch.device, smoke: bool) -> Attention:
    """The same weights in float32."""
    found = library.vision(device, ours=False, smoke=smoke)
    found.model.float()
    return found


def _tensors(heads: tuple[int, int, int], batch: int, queries: int, tokens: int, device: torch.device) -> Inputs:
    query = _random((batch, heads[0], queries, heads[2]), 0, device)
    key, value = (_random((batch, heads[1], tokens, heads[2]), seed, device) for seed in (1, 5))
    return query, key, value


def _random(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
