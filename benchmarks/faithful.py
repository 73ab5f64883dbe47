"""Is what a system computes right? Asked before it is timed, with a tolerance that the model itself tells.

Random deep models amplify rounding, and a router turns it into other experts, so no fixed tolerance fits all of them.
The plain model is therefore run once more with noise of a stated size on the output of every matrix product; a system
may lie twice as far from the plain model as that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arms.decoder import Decoder, GenerateDecoder

NOISE = {"rounding": 0.002, "int8": 0.01, "int8 twice": 0.016, "fp8": 0.03, "fp8 twice": 0.045, "int4": 0.11}
"""Relative noise on every product's output: bfloat16 rounding twice over; weights rounded to int8, fp8, int4, or, where
it is told twice, activations too."""
SLACK, LEAST, MOST = 2.0, 0.02, 0.8
"""Unrelated logits lie 1.4 apart; nothing beyond MOST passes, whatever the model amplifies."""
GAP_SIGMAS = 6.0


@dataclass(frozen=True)
class Reference:
    """What the plain model said: its greedy tokens [n] behind the last row of `prompt`, their logits [n, V], what noise
    did."""

    prompt: Tensor
    tokens: Tensor
    logits: Tensor
    noise_error: float
    noise_top1: float


@dataclass(frozen=True)
class Verdict:
    """How far a system lies from the plain model. `gap` is by how many standard deviations of the reference's logits
    the first token that differs was worse there; `same_tokens` is how many came before it."""

    right: bool
    error: float
    tolerance: float
    noise_error: float
    top1: float
    noise_top1: float
    same_tokens: int
    of_tokens: int
    gap: float
    gap_tolerance: float
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reference(model: nn.Module, prompt: Tensor, tokens: int, exactness: str) -> Reference:
    """Ask the plain model. Raises ValueError where its logits are no numbers or all alike: then it proves nothing."""
    plain = GenerateDecoder(model).decode(prompt, tokens, logits=True)
    assert plain.logits is not None
    check_sane(plain.logits)
    along = torch.cat([prompt[-1:], plain.tokens[None, :-1].to(prompt.device)], 1)
    error, top1 = noise_floor(model, along, tokens, NOISE[exactness])
    return Reference(prompt, plain.tokens, plain.logits, error, top1)


def noise_floor(model: nn.Module, tokens: Tensor, keep: int, size: float) -> tuple[float, float]:
    """Relative error and top-1 agreement of the last `keep` logits when every product carries noise of `size`."""
    clean = last_logits(model, tokens, keep)
    with noisy(model, size):
        moved = last_logits(model, tokens, keep)
    return relative_error(moved, clean), top1_agreement(moved, clean)


def check_sane(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise ValueError("the plain model's logits are not numbers")
    if logits.std(-1).min() < 0.05:
        raise ValueError("the plain model's logits are nearly uniform: agreement with them would mean nothing")


def judge(decoder: Decoder, reference: Reference) -> Verdict:
    """Hold a system against the reference twice: along the reference's tokens, and freely, as it will be timed."""
    count = len(reference.tokens)
    along = decoder.decode(reference.prompt, count, forced=reference.tokens, logits=True).logits
    free = decoder.decode(reference.prompt, count).tokens
    assert along is not None
    return verdict(along, free, reference)


def verdict(along: Tensor, free: Tensor, reference: Reference) -> Verdict:
    tolerance = tolerance_of(reference.noise_error)
    finite = bool(along.isfinite().all())
    error = relative_error(along, reference.logits) if finite else math.inf
    same, gap = first_difference(free, reference)
    limit, reasons = GAP_SIGMAS * tolerance, []
    if not error <= tolerance:
        reasons.append(f"its logits lie {error:.3f} from the plain model's, {tolerance:.3f} allowed")
    if not gap <= limit:
        reasons.append(f"its token {same} is {gap:.2f} sigma worse than the plain model's, {limit:.2f} allowed")
    return Verdict(
        right=not reasons, error=error, tolerance=tolerance, noise_error=reference.noise_error,
        top1=top1_agreement(along, reference.logits), noise_top1=reference.noise_top1, same_tokens=same,
        of_tokens=len(reference.tokens), gap=gap, gap_tolerance=limit, reason="; ".join(reasons),
    )  # fmt: skip


def tolerance_of(noise_error: float) -> float:
    return min(MOST, max(LEAST, SLACK * noise_error))


def first_difference(free: Tensor, reference: Reference) -> tuple[int, float]:
    """Tokens before the first that differs, and its gap; up to there both saw the same text."""
    differ = (free != reference.tokens).nonzero()
    if not len(differ):
        return len(reference.tokens), 0.0
    place = int(differ[0])
    row = reference.logits[place]
    return place, float((row[reference.tokens[place]] - row[free[place]]) / row.std())


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Of logits, each row without its mean: softmax does not see it."""
    got, wanted = got - got.mean(-1, keepdim=True), wanted - wanted.mean(-1, keepdim=True)
    return float((got - wanted).norm() / wanted.norm())


def top1_agreement(got: Tensor, wanted: Tensor) -> float:
    return float((got.argmax(-1) == wanted.argmax(-1)).float().mean())


@torch.no_grad()
def last_logits(model: nn.Module, tokens: Tensor, keep: int) -> Tensor:
    """float32 on the host, [keep, vocabulary]."""
    return model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0].float().cpu()


@contextmanager
def noisy(model: nn.Module, size: float, seed: int = 0) -> Iterator[None]:
    """Noise of `size` times its own root mean square on the output of every Linear and of every block of experts."""
    generators: dict[torch.device, torch.Generator] = {}

    def disturb(module: nn.Module, given: Any, out: Any) -> Any:
        if not isinstance(out, Tensor):
            return out
        if out.device not in generators:
            generators[out.device] = torch.Generator(out.device).manual_seed(seed)
        draw = torch.randn(out.shape, generator=generators[out.device], device=out.device, dtype=torch.float32)
        return (out + size * out.float().square().mean().sqrt() * draw).to(out.dtype)

    def takes_part(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) or name.endswith(".experts")

    handles = [
        module.register_forward_hook(disturb) for name, module in model.named_modules() if takes_part(name, module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
