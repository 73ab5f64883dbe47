"""The fastest launch of a product of a few rows on this GPU: candidates are checked, then timed over many weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import Packed, unpack
from inference_pio.kernels.gemv import gemv as torch_gemv
from inference_pio.kernels.recording import recording
from inference_pio.kernels.row_codes import scaled_values
from inference_pio.kernels.triton.gemv_candidates import GemvProblem, candidates
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.launch import device_limits

TOLERANCE = 3e-2
"""What rounding explains of a result, as a share of its largest number."""
BETTER = 0.99
"""What a launch must take of the time of the one that is known to be good: less of a gain may be chance."""
CACHE_TIMES = 4
"""How often the weights in turn should fill the GPU's cache, so that each comes from memory."""
REPLAYS = 5

GemvWeights = tuple[Sequence[Any], Sequence[torch.Tensor] | None]
"""The weights of one product, tensors or packed ones, and their scales where they are int8."""


@dataclass(frozen=True)
class Tuning:
    """The launch that was chosen, microseconds of each that was timed, and what a reader of them should know."""

    launch: GemvLaunch
    microseconds: dict[GemvLaunch, float]
    notes: tuple[str, ...] = ()


Run = Callable[[GemvProblem, GemvWeights, GemvLaunch], torch.Tensor]
Timed = Callable[[GemvProblem, Sequence[GemvWeights], GemvLaunch], float]


def tune(
    problem: GemvProblem,
    weights_in_turn: Sequence[GemvWeights],
    time_limit_s: float,
    *,
    run: Run | None = None,
    timed: Timed | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Tuning:
    """The fastest candidate within the time limit that gives torch's result; nothing of the caller's is written.

    `weights_in_turn` are many different weights of one shape, so that each is read from memory as in a model. Raises
    InvalidSetting where no candidate gives the right result.
    """
    if not weights_in_turn:
        raise InvalidSetting(f"no weights were given to tune {problem.key()} with: give those of several layers.")
    run, timed, begun = run or _run, timed or graph_microseconds, clock()
    device = next(tensors_of(weights_in_turn[0])).device
    tried = candidates(problem, device_limits(device))
    true = _true(problem, weights_in_turn[0]).float()
    microseconds: dict[GemvLaunch, float] = {}
    notes = _notes_of_weights(weights_in_turn, device)
    for count, launch in enumerate(tried):
        if count and clock() - begun > time_limit_s:
            notes.append(f"{len(tried) - count} of {len(tried)} candidates were not tried within {time_limit_s:g} s")
            break
        if wrong := _why_wrong(problem, weights_in_turn[0], launch, true, run):
            notes.append(f"{launch}: {wrong}")
            continue
        microseconds[launch] = timed(problem, weights_in_turn, launch)
    if not microseconds:
        raise InvalidSetting(f"no launch gives the right result of {problem.key()}: {'; '.join(notes)}.")
    best = min(microseconds, key=microseconds.__getitem__)
    known = tried[0]
    if known in microseconds and microseconds[best] > BETTER * microseconds[known]:
        best = known
    return Tuning(best, microseconds, tuple(notes))


def graph_microseconds(problem: GemvProblem, weights_in_turn: Sequence[GemvWeights], launch: GemvLaunch) -> float:
    """Microseconds a launch, in a recorded graph that walks through all the weights: the median of a few replays."""
    product = _product(problem)
    device = next(tensors_of(weights_in_turn[0])).device
    calls = [_call(problem, weights) for weights in weights_in_turn]
    with torch.cuda.device(device), torch.no_grad():
        product(**calls[0], launch=launch)  # compiles, which no graph may do
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with recording(graph, device):
            for call in calls:
                product(**call, launch=launch)
        graph.replay()
        taken = []
        for _ in range(REPLAYS):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            taken.append(begun.elapsed_time(ended) * 1000 / len(calls))
    return statistics.median(taken)


def _product(problem: GemvProblem) -> Callable[..., torch.Tensor]:
    """The kernel that computes it."""
    from inference_pio.kernels.triton.exponent12_gemv import exact_gemv
    from inference_pio.kernels.triton.gemv import gemv

    return exact_gemv if problem.exact_columns else gemv


def _true(problem: GemvProblem, weights: GemvWeights) -> torch.Tensor:
    """What torch computes; for packed weights, the bits of the plain ones, in any launch of as many columns."""
    if not problem.exact_columns:
        return torch_gemv(**_call(problem, _plain(problem, weights)))
    plain = replace(problem, exact_columns=0)
    launch = GemvLaunch(1, problem.exact_columns, 1)
    return _run(plain, ([unpack(packed) for packed in weights[0]], None), launch)


def _plain(problem: GemvProblem, weights: GemvWeights) -> GemvWeights:
    """The numbers that codes stand for: torch's product of codes may go by the very kernels that are tried."""
    codes, scales = weights
    if scales is None:
        return weights
    return [scaled_values(*each, problem.dtype) for each in zip(codes, scales, strict=True)], None


def _run(problem: GemvProblem, weights: GemvWeights, launch: GemvLaunch) -> torch.Tensor:
    with torch.no_grad():
        return _product(problem)(**_call(problem, weights), launch=launch)


def _call(problem: GemvProblem, weights: GemvWeights) -> dict[str, object]:
    """Arguments for a product with these weights, all else made up."""
    device = next(tensors_of(weights)).device
    chance = torch.Generator(device).manual_seed(1)
    columns = problem.outputs[0] if problem.gated else sum(problem.outputs)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance, device=device).to(problem.dtype)

    out = torch.empty(problem.batch, columns, device=device, dtype=problem.out_dtype or problem.dtype)
    given: dict[str, object] = {"x": numbers(problem.batch, problem.inputs), "weights": weights[0], "out": out}
    given["gated"] = problem.gated
    if problem.exact_columns:
        given["columns"] = problem.exact_columns
    if weights[1] is not None:
        given["scales"] = weights[1]
    if problem.normed:
        given |= {"norm_weight": numbers(problem.inputs), "eps": 1e-6}
    if problem.added:
        given["residual"] = numbers(problem.batch, columns)
    return given


def _why_wrong(
    problem: GemvProblem, weights: GemvWeights, launch: GemvLaunch, true: torch.Tensor, run: Run
) -> str | None:
    try:
        got = run(problem, weights, launch).float()
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:  # whatever a compiler or a driver raises is the reason why a launch is not used
        return f"it does not run here ({(str(raised) or repr(raised)).splitlines()[0]})"
    if problem.exact_columns:
        return None if torch.equal(got, true) else "its bits are not those of plain weights"
    error = ((got - true).abs().max() / true.abs().max().clamp(min=1e-9)).item()
    return None if error <= TOLERANCE else f"it is off by {error:.2g} of the largest number"


def _notes_of_weights(weights_in_turn: Sequence[GemvWeights], device: torch.device) -> list[str]:
    if device.type != "cuda":
        return []
    held = {tensor.data_ptr(): tensor.nbytes for weights in weights_in_turn for tensor in tensors_of(weights)}
    held_bytes, cached = sum(held.values()), cache_bytes(device)
    if held_bytes >= CACHE_TIMES * cached:
        return []
    sizes = f"{held_bytes / 1e6:.0f} MB of weights in turn, and the GPU's cache holds {cached / 1e6:.0f} MB"
    return [f"the times may flatter: {sizes}"]


def cache_bytes(device: torch.device) -> int:
    """What a GPU's cache holds; elsewhere there is none to be wary of."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def tensors_of(weights: GemvWeights) -> Iterator[torch.Tensor]:
    """The weights of a product, or what packed ones are made of."""
    for weight in weights[0]:
        yield from weight if isinstance(weight, Packed) else (weight,)
