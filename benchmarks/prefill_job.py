"""A system that runs the forward of a prompt: checked at each length, then timed; sparse ones by what they promise."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

import inference_pio
from benchmarks import faithful, real_models, weights
from benchmarks.arms import attention, prefill
from benchmarks.arms.prefill import Pattern
from benchmarks.arms.problem import Unavailable
from benchmarks.arms.room import Room
from benchmarks.ceilings import seconds_of
from benchmarks.suites import Suite
from inference_pio.measure import peak_bytes, weight_bytes

NOISE_TOKENS = 8192
"""Of a longer prompt so many show what noise does: noise in float32 takes many times what the forward itself does."""
JUDGED_TOKENS = 32
Answer = dict[str, Any]
Logits = dict[int, Tensor]


class PrefillJob:
    """Tokens per second of a forward, at several lengths; each length is checked by itself."""

    def __init__(self, suite: Suite, arm: str, device: torch.device, smoke: bool) -> None:
        self.suite, self.arm, self.device, self.smoke = suite, prefill.ARMS[arm], device, smoke
        if reason := self.arm.unavailable(device.type == "cuda"):
            raise Unavailable(reason)

    def set_up(self) -> Answer:
        model = real_models.build(self.suite.model, self.device, smoke=self.smoke)
        if self.arm.prepare is not None:
            self.arm.prepare(model)
        self.prompts = {length: real_models.prompt(model, length, length) for length in self.suite.lengths}
        self.listen(model)
        flops = self._flops(model)
        room = Room(self.prompts[min(self.prompts)], max(self.suite.lengths), self.smoke)
        start = time.perf_counter()
        self.run = self.arm.make(model, room)
        if self.arm.prepare is not None:
            flops = self._flops(model)  # what went is not computed
        got = {length: self._logits(self.run, tokens) for length, tokens in self.prompts.items()}
        for tokens in self.prompts.values():
            self._time(tokens)
        warm_s = time.perf_counter() - start
        return {
            "label": self.arm.label, "warm_s": warm_s, "warm_rounds": 2, "notes": room.notes,
            "bytes": {"weights": weight_bytes(model)}, "units": {str(length): "tok/s" for length in self.prompts},
            "shares": {
                str(length): {
                    "ceiling": "matmul bfloat16", "per_unit": flops[length] / length / 1e12, "unit": "TFLOP/s",
                }
                for length in self.prompts
            },
        } | self.judge(model, got)  # fmt: skip

    def listen(self, model: nn.Module) -> None:
        """What the plain model says, and what noise does to it."""
        plain, noise_on = prefill.forward(model), self.prompts[min(self.prompts)][:, :NOISE_TOKENS]
        self.wanted = {length: self._logits(plain, tokens) for length, tokens in self.prompts.items()}
        for logits in self.wanted.values():
            faithful.check_sane(logits)
        size = faithful.NOISE[self.arm.exactness]
        self.noise, self.top1 = faithful.noise_floor(model, noise_on, self.suite.check_tokens, size)

    def judge(self, model: nn.Module, got: Logits) -> Answer:
        """The logits of each length may lie as far off as noise takes them."""
        errors = {str(length): error_of(got[length], self.wanted[length]) for length in got}
        agree = {str(length): faithful.top1_agreement(got[length], self.wanted[length]) for length in got}
        tolerance = faithful.tolerance_of(self.noise)
        bad = [length for length, error in errors.items() if not error <= tolerance]
        check = {"error": errors, "tolerance": tolerance, "noise_error": self.noise, "noise_top1": self.top1}
        reason = "; ".join(f"at {x} its logits lie {errors[x]:.3f} off, {tolerance:.3f} allowed" for x in bad)
        return {"right": not bad, "reason": reason, "check": check | {"top1": agree}}

    def round(self) -> Answer:
        start, values = time.perf_counter(), {}
        with peak_bytes(self.device) as peak:
            for length, tokens in self.prompts.items():
                values[str(length)] = length / self._time(tokens)
        return {"values": values, "seconds": time.perf_counter() - start, "peak_bytes": peak.peak_bytes}

    def close(self) -> None:
        """Nothing outlives the process."""

    def _logits(self, run: prefill.Forward, tokens: Tensor) -> Tensor:
        return run(tokens, self.suite.check_tokens).float().cpu()

    def _time(self, tokens: Tensor) -> float:
        """As many logits are kept as in the check: another number would be compiled anew, and costs no less."""
        return seconds_of(lambda: self.run(tokens, self.suite.check_tokens), self.device)

    def _flops(self, model: nn.Module) -> dict[int, float]:
        config = model.config.get_text_config()
        per_token = weights.flops_per_token(model)
        layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        return {n: per_token * n + layers * attention.flops(n, heads, width) for n in self.suite.lengths}


class SparsePrefillJob(PrefillJob):
    """A system whose pattern leaves keys out: on random weights, whose heads look everywhere, its logits are others.

    So nothing is said of its quality here. Long prompts must give sane logits, and the pattern must have counted them;
    how much it read, and how much of the attention that was, is recorded. A prompt that is too short for the pattern
    is dense, and is held against the plain model as any other system's.
    """

    pattern: Pattern

    def listen(self, model: nn.Module) -> None:
        assert self.arm.pattern is not None
        self.pattern = self.arm.pattern
        self.short = real_models.prompt(model, self.pattern.dense_tokens(self.smoke))
        self.keep = min(JUDGED_TOKENS, self.short.shape[1] // 2)
        self.wanted_of_short = prefill.forward(model)(self.short, self.keep).float().cpu()
        faithful.check_sane(self.wanted_of_short)
        self.noise, self.top1 = faithful.noise_floor(model, self.short, self.keep, faithful.NOISE["rounding"])

    def judge(self, model: nn.Module, got: Logits) -> Answer:
        told = told_by(model, self.pattern.name)  # before the short prompt is counted too
        short = self.run(self.short, self.keep).float().cpu()
        error, tolerance = error_of(short, self.wanted_of_short), faithful.tolerance_of(self.noise)
        reasons = [f"at {length} its logits are not numbers" for length in got if not got[length].isfinite().all()]
        reasons += [f"at {length} its logits are all alike" for length in got if got[length].std(-1).min() < 0.05]
        if not error <= tolerance:
            reasons.append(f"at {self.short.shape[1]}, densely, they lie {error:.3f} off, {tolerance:.3f} allowed")
        reasons += self.pattern.why_wrong(told)
        check = {"exactness": self.arm.exactness, "error": {f"{self.short.shape[1]}, dense": error}}
        return {
            "right": not reasons, "reason": "; ".join(reasons), "facts": {str(length): told for length in got},
            "check": check | {"tolerance": tolerance, "noise_error": self.noise, "noise_top1": self.top1},
        }  # fmt: skip


def error_of(got: Tensor, wanted: Tensor) -> float:
    """The relative error; a number where logits are none, since results hold numbers alone."""
    error = faithful.relative_error(got, wanted)
    return error if math.isfinite(error) else 1e9


def told_by(model: nn.Module, pattern: str) -> Answer:
    """What a pattern's receipt and counters say: calls it served and left, the share of pairs of a query and a key that
    it read, and the share of the attention on these, as its profile or its audits found it."""
    status = inference_pio.get_optimization_manager().get_optimization_status(model)
    (applied,) = [one for one in status["applied_optimizations"] if one["name"] == pattern]
    told = dict(applied.get("counted", {}))
    audits = [phase["prefill"]["coverage_mean"] for phase in told.pop("audits", {}).values() if "prefill" in phase]
    profile = applied["receipt"]["decision"].get("coverage")
    profiled = [share for shares in profile.values() for share in shares] if isinstance(profile, dict) else []
    coverage = statistics.mean(audits or profiled) if audits or profiled else None
    return told | {"coverage": coverage, "told by": "audits" if audits else "a profile of the worst places"}


def make(suite: Suite, arm: str, device: torch.device, smoke: bool) -> PrefillJob:
    kind = SparsePrefillJob if prefill.ARMS[arm].pattern else PrefillJob
    return kind(suite, arm, device, smoke)
