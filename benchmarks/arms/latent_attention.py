"""One decode step of GLM-4.7-Flash's attention behind a long text: the library expands the whole latent cache anew.

The work is the latent cache read once: an expanding module shows by its rate how much more it does.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms import library
from benchmarks.arms.library import Attention
from benchmarks.arms.problem import Inputs, KernelArm, Make, Problem, Run, relative_error
from benchmarks.suites import Suite

CHUNK = 4096
TOLERANCE = 3e-2
"""Of bfloat16 outputs: what is rounded on the way to the scores moves them by under 1%; a position off, by 25%."""


def _module(ours: bool) -> Make:
    def make(problem: Problem, device: torch.device, smoke: bool) -> Run:
        found = library.latent(device, ours=ours, smoke=smoke)
        length, caches = problem["length"], {}

        def run(hidden: Tensor, before: Tensor) -> Tensor:
            """The cache is filled at the first call; later ones find it grown by a token each."""
            if "cache" not in caches:
                caches["cache"] = filled(found, before)
            return step(found, hidden, caches["cache"], length)

        return run

    return make


ARMS: dict[str, KernelArm] = {
    "library": KernelArm("the library's module, expanding its cache", _module(False)),
    "pio": KernelArm("inference-pio flash_attention", _module(True)),
}


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    return [_problem(length, smoke) for length in suite.lengths]


def _problem(length: int, smoke: bool) -> Problem:
    def draw(device: torch.device) -> Inputs:
        width = library.LATENT["hidden_size"] if not smoke else library.TINY_LATENT["hidden_size"]
        generator = torch.Generator(device).manual_seed(length)
        shape = (1, length + 1, width)
        hidden = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        return hidden[:, length:], hidden[:, :length]

    def error(out: Tensor, inputs: Inputs) -> float:
        return relative_error(out, _wanted(length, smoke, out.device, inputs))

    config = _config(smoke)
    work = 2.0 * length * (config.kv_lora_rank + config.qk_rope_head_dim)
    return Problem(str(length), "GB/s", work, draw, error, {"length": length}, tolerance=TOLERANCE)


def filled(found: Attention, before: Tensor) -> Any:
    """The library's dynamic cache behind the tokens `before` [1, L, width], filled in pieces that fit."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for place in range(0, before.shape[1], CHUNK):
        keep_latents(found, before[:, place : place + CHUNK], cache, place)
    return cache


def keep_latents(found: Attention, hidden: Tensor, cache: Any, place: int) -> None:
    """Run the module on a piece of text for the sake of what it keeps; each piece sees itself alone."""
    positions = torch.arange(place, place + hidden.shape[1], device=hidden.device)[None]
    piece = type(cache)()
    found.module(
        hidden, position_embeddings=library.rotary(found, positions), attention_mask=None, past_key_values=piece
    )
    cache.update(piece.layers[0].keys, piece.layers[0].values, 0)


def step(found: Attention, hidden: Tensor, cache: Any, place: int) -> Tensor:
    positions = torch.full((1, 1), place, device=hidden.device)
    out = found.module(
        hidden, position_embeddings=library.rotary(found, positions), attention_mask=None, past_key_values=cache
    )
    return out[0]  # type: ignore[no-any-return]


def _wanted(length: int, smoke: bool, device: torch.device, inputs: Inputs) -> Tensor:
    """The library's own module in float32, on the latents that it keeps in bfloat16."""
    found = library.latent(device, ours=False, smoke=smoke)
    cache = filled(found, inputs[1])
    exact = _exact(device, smoke)
    for name in ("keys", "values"):
        setattr(cache.layers[0], name, getattr(cache.layers[0], name).float())
    return step(exact, inputs[0].float(), cache, length)


@functools.cache
def _exact(device: torch.device, smoke: bool) -> Attention:
    found = library.latent(device, ours=False, smoke=smoke)
    found.model.float()
    return found


def _config(smoke: bool) -> Any:
    from transformers import Glm4MoeLiteConfig

    return Glm4MoeLiteConfig(**library.LATENT | (library.TINY_LATENT if smoke else {}))
