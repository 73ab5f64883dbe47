"""What a decode step runs beside its products: rotation and cache, attention, routing, experts, latents.

The work is the bytes that one call must move; `floor_us` tells them at 3.0 TB/s. Inputs in turn do not fit the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms.problem import Inputs, KernelArm, Problem, Run, relative_error
from benchmarks.suites import Suite
from inference_pio.kernels import decode_attention, experts, latent_attention, latent_step, rotary_store, routing
from inference_pio.kernels.routing import RoutingRule

DRAWN = 2e-2
"""Relative error of bfloat16 results that pass through a rounding inside."""
EPS, ROPE_THETA = 1e-6, 1e6


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    grouped = {"4B": (4, 2, 64)} if smoke else {"4B": (32, 8, 128), "30B-A3B": (32, 4, 128), "VL-2B": (16, 8, 128)}
    mixtures = {"small": (64, 8, 32, 2)} if smoke else {"30B-A3B": (2048, 128, 768, 8), "Flash": (2048, 64, 1536, 4)}
    latents = (4, 64, 16, 24, 32) if smoke else (20, 512, 64, 192, 256)
    found = [_rotation(name, heads) for name, heads in grouped.items()]
    found += [_attention(name, heads, length) for name, heads in grouped.items() for length in suite.lengths]
    for name, sizes in mixtures.items():
        found += [_route(name, sizes), _gate_up(name, sizes), _down(name, sizes)]
    found += [_absorb(latents), _expand(latents)]
    return found + [_latent(latents, length) for length in suite.lengths]


def _problem(
    name: str, nbytes: float, draw: Callable[[torch.device], Inputs], kernel: str, wanted: Callable[..., Tensor],
    **how: Any,
) -> Problem:  # fmt: skip
    given = {"kernel": kernel, "how": how, "floor_us": nbytes / 3.0e6}
    error = lambda out, inputs: relative_error(out, wanted(*inputs, **how))  # noqa: E731
    return Problem(name, "GB/s", nbytes, draw, error, given, in_graph=True, nbytes=int(nbytes), tolerance=DRAWN)


def _numbers(seed: int, device: torch.device) -> Callable[..., Tensor]:
    chance = torch.Generator(device).manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=chance, device=device, dtype=torch.bfloat16)


def _count(number: int, device: torch.device) -> Tensor:
    return torch.tensor([number], dtype=torch.int32, device=device)


def _tables(width: int, device: torch.device, positions: int = 1024) -> tuple[Tensor, Tensor]:
    rates = ROPE_THETA ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(positions, device=device)[:, None] * rates
    angles = torch.cat((angles, angles), -1)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def _rotation(name: str, heads: tuple[int, int, int]) -> Problem:
    count, key_heads, width = heads
    rows = count + 2 * key_heads

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(1, device)
        caches = [torch.zeros(1, 1024, key_heads, width, device=device, dtype=torch.bfloat16) for _ in range(2)]
        norms = (numbers(width), numbers(width))
        place = (_count(700, device), _count(701, device))
        return numbers(1, rows * width), *caches, *_tables(width, device), *place, *norms

    return _problem(
        f"rotate_and_store {name}", 4 * rows * width, draw, "rotate", _rotated, heads=count, key_heads=key_heads
    )


def _rotated(*given: Tensor, **how: Any) -> Tensor:
    *tensors, query_norm, key_norm = given
    return _rotate(rotary_store.naive_rotate_and_store, *tensors, query_norm, key_norm, **how).float()


def _rotate(kernel: Any, *given: Tensor, **how: Any) -> Tensor:
    *tensors, query_norm, key_norm = given
    return kernel(*tensors, query_norm=query_norm, key_norm=key_norm, eps=EPS, **how)  # type: ignore[no-any-return]


def _attention(name: str, heads: tuple[int, int, int], length: int) -> Problem:
    count, key_heads, width = heads

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(length, device)
        caches = [numbers(1, length, key_heads, width) for _ in range(2)]
        return 2 * numbers(1, count, width), *caches, _count(length, device)

    nbytes = 4 * length * key_heads * width
    return _problem(f"attention {name} {length}", nbytes, draw, "attention", _attended)


def _attended(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    return decode_attention.naive_decode_attention(query.float(), key.float(), value.float(), lengths)


def _route(name: str, sizes: tuple[int, int, int, int]) -> Problem:
    width, count, _, top = sizes

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(count, device)
        return numbers(1, width), numbers(count, width) * width**-0.5, torch.ones_like(numbers(width))

    return _problem(f"route {name}", 2 * count * width, draw, "route", _routed, top=top)


def _routed(x: Tensor, gate: Tensor, norm: Tensor, *, top: int) -> Tensor:
    """The weights that experts get, each at its number: in which order they are told is left open."""
    return _spread(routing.naive_route(x, gate, RoutingRule(top), norm_weight=norm, eps=EPS), len(gate))


def _spread(found: routing.Routed, count: int) -> Tensor:
    room = found.weight.new_zeros(len(found.weight), count, dtype=torch.float32)
    return room.scatter_(1, found.index.long(), found.weight.float())


def _gate_up(name: str, sizes: tuple[int, int, int, int]) -> Problem:
    width, count, inner, top = sizes

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(inner, device)
        return numbers(1, width), numbers(count, 2 * inner, width).mul_(width**-0.5), _chosen(count, top, device)

    return _problem(f"expert_gate_up {name}", 4 * top * inner * width, draw, "gate_up", _naive_gate_up)


def _naive_gate_up(x: Tensor, gate_up: Tensor, index: Tensor) -> Tensor:
    return experts.naive_expert_gate_up(x, *_few(index, gate_up))


def _down(name: str, sizes: tuple[int, int, int, int]) -> Problem:
    width, count, inner, top = sizes

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(inner, device)
        shares = torch.full((1, top), 1 / top, device=device, dtype=torch.bfloat16)
        weights = numbers(count, width, inner).mul_(inner**-0.5)
        return numbers(1, top * inner), weights, _chosen(count, top, device), shares, numbers(1, width)

    return _problem(f"expert_down {name}", 2 * top * inner * width, draw, "down", _naive_down)


def _naive_down(hidden: Tensor, down: Tensor, index: Tensor, shares: Tensor, residual: Tensor) -> Tensor:
    return experts.naive_expert_down(hidden, *_few(index, down), shares, residual=residual)


def _few(index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of all experts in float32 there would be gigabytes: the chosen ones alone."""
    return weights[index[0].long()], torch.arange(index.shape[1], device=index.device)[None]


def _chosen(count: int, top: int, device: torch.device) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(top))
    return order[:top][None].int().to(device)


def _absorb(sizes: tuple[int, int, int, int, int]) -> Problem:
    heads, width, rope, nope, value = sizes

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(width, device)
        cache = torch.zeros(1, 1024, 1, width + rope, device=device, dtype=torch.bfloat16)
        return (
            numbers(1, heads * (nope + rope)), numbers(heads * (nope + value), width).mul_(width**-0.5),
            numbers(1, width + rope), numbers(width), *_tables(rope, device), _count(700, device), cache,
            _count(701, device),
        )  # fmt: skip

    how = {"heads": heads, "nope": nope, "interleaved": True}
    return _problem("absorb_and_store Flash", 2 * heads * nope * width, draw, "absorb", _naive_absorb, **how)


def _naive_absorb(query: Tensor, up: Tensor, kv: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, positions: Tensor,
                  cache: Tensor, lengths: Tensor, **how: Any) -> Tensor:  # fmt: skip
    return latent_step.naive_absorb(query, up, cos, sin, positions, **how)[0]


def _run_absorb(kernel: Any, query: Tensor, up: Tensor, kv: Tensor, norm: Tensor, cos: Tensor, sin: Tensor,
                positions: Tensor, cache: Tensor, lengths: Tensor, **how: Any) -> Tensor:  # fmt: skip
    return kernel(query, up, kv, norm, EPS, cos, sin, positions, cache, lengths, **how)[0]  # type: ignore[no-any-return]


def _expand(sizes: tuple[int, int, int, int, int]) -> Problem:
    heads, width, _, nope, value = sizes

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(width + 1, device)
        return numbers(1, heads, width), numbers(heads * (nope + value), width).mul_(width**-0.5)

    return _problem("expand Flash", 2 * heads * value * width, draw, "expand", latent_step.naive_expand, nope=nope)


def _latent(sizes: tuple[int, int, int, int, int], length: int) -> Problem:
    heads, width, rope, nope, _ = sizes

    def draw(device: torch.device) -> Inputs:
        numbers = _numbers(length + 1, device)
        cache = numbers(1, length, width + rope)
        query = numbers(1, heads, width + rope)
        return query[..., :width].contiguous(), query[..., width:].contiguous(), cache, _count(length, device)

    how = {"scale": (nope + rope) ** -0.5}
    return _problem(f"latent Flash {length}", 2 * length * (width + rope), draw, "latent", _naive_latent, **how)


def _naive_latent(query: Tensor, turned: Tensor, cache: Tensor, lengths: Tensor, *, scale: float) -> Tensor:
    scores = torch.cat((query, turned), -1).float() @ cache.float().mT * scale
    return scores.softmax(-1) @ cache[..., : query.shape[-1]].float()


def _torch_latent(query: Tensor, turned: Tensor, cache: Tensor, lengths: Tensor, *, scale: float) -> Tensor:
    """As `kernels.latent_attention` has it, between absorbing and expanding."""
    latent = cache[..., : query.shape[-1]]
    scores = latent_attention._product(torch.cat((query, turned), -1), cache.mT) * scale
    return latent_attention._product(scores.softmax(-1).to(cache.dtype), latent).to(query.dtype)


def _torch(problem: Problem, device: torch.device, smoke: bool) -> Run:
    how = problem["how"]
    runs: dict[str, Callable[..., Any]] = {
        "rotate": partial(_rotate, rotary_store.rotate_and_store), "attention": decode_attention.decode_attention,
        "route": lambda x, gate, norm, top: routing.route(x, gate, RoutingRule(top), norm_weight=norm, eps=EPS),
        "gate_up": experts.expert_gate_up,
        "down": lambda hidden, down, index, shares, residual: experts.expert_down(
            hidden, down, index, shares, residual=residual
        ),
        "absorb": partial(_run_absorb, latent_step.absorb_and_store), "expand": latent_step.expand,
        "latent": _torch_latent,
    }  # fmt: skip
    return partial(runs[problem["kernel"]], **how)


def _pio(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from inference_pio.kernels.triton import decode, latent_decode
    from inference_pio.kernels.triton import experts as own_experts
    from inference_pio.kernels.triton import latent_step as own_latent_step
    from inference_pio.kernels.triton import rotary_store as own_rotary_store
    from inference_pio.kernels.triton import routing as own_routing

    how, kept = problem["how"], dict[str, Any]()

    def route(x: Tensor, gate: Tensor, norm: Tensor, top: int) -> Any:
        if not kept:
            kept["scratch"] = own_routing.RoutingScratch.of(len(x), len(gate), x.device)
        return own_routing.route(x, gate, RoutingRule(top), norm_weight=norm, eps=EPS, scratch=kept["scratch"])

    def latent(query: Tensor, turned: Tensor, cache: Tensor, lengths: Tensor, scale: float) -> Tensor:
        width = query.shape[-1]
        return latent_decode.latent_decode_attention(
            query, turned, cache[..., :width], cache[..., width:], lengths, scale=scale
        )

    runs: dict[str, Callable[..., Any]] = {
        "rotate": partial(_rotate, own_rotary_store.rotate_and_store), "attention": decode.decode_attention,
        "route": route, "gate_up": own_experts.expert_gate_up,
        "down": lambda hidden, down, index, shares, residual: own_experts.expert_down(
            hidden, down, index, shares, residual=residual
        ),
        "absorb": partial(_run_absorb, own_latent_step.absorb_and_store), "expand": own_latent_step.expand,
        "latent": latent,
    }  # fmt: skip
    return partial(runs[problem["kernel"]], **how)


def _error(problem: Problem, out: Any, inputs: Inputs) -> float:
    """A router tells its experts apart; what else there is, is one tensor."""
    return problem.error(_spread(out, len(inputs[1])) if isinstance(out, routing.Routed) else out, inputs)


ARMS: dict[str, KernelArm] = {
    "torch": KernelArm("torch's operations", _torch, error=_error),
    "pio-kernels": KernelArm("inference-pio", _pio, triton=True, error=_error),
}
