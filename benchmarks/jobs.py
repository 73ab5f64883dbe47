"""One system of one suite, inside its own process: set up, checked, then timed a round at a time.

A job answers in plain JSON. `set_up` says what it took and whether the output is right; `round` gives one value a case.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks import faithful, real_models, weights
from benchmarks.arms import attention, prefill
from benchmarks.arms.problem import Unavailable
from benchmarks.arms.room import Room
from benchmarks.arms.table import ARMS
from benchmarks.ceilings import seconds_of
from benchmarks.kernel_job import KernelJob, family_of
from benchmarks.suites import SUITES, Suite
from inference_pio.measure import peak_bytes, weight_bytes

Answer = dict[str, Any]


class Job(Protocol):
    def set_up(self) -> Answer: ...
    def round(self) -> Answer: ...
    def close(self) -> None: ...


def make_job(suite_name: str, arm: str, *, device: str, smoke: bool) -> Job:
    """Raises Unavailable where the system cannot run on this machine."""
    suite = SUITES[suite_name].smoked() if smoke else SUITES[suite_name]
    if suite.threads and not smoke:
        torch.set_num_threads(suite.threads)
    kinds: dict[str, Any] = {"decode": DecodeJob, "prefill": PrefillJob, "kernels": KernelJob}
    return kinds[suite.kind](suite, arm, torch.device(device), smoke)  # type: ignore[no-any-return]


def label_of(suite: Suite, arm: str) -> str:
    if suite.kind == "kernels":
        return str(family_of(suite).ARMS[arm].label)
    return prefill.ARMS[arm].label if suite.kind == "prefill" else ARMS[arm].label


class DecodeJob:
    """Greedy tokens behind a prompt: tokens per second after the first, and seconds to the first."""

    def __init__(self, suite: Suite, arm: str, device: torch.device, smoke: bool) -> None:
        self.suite, self.arm, self.device, self.smoke = suite, ARMS[arm], device, smoke
        _available(self.arm.unavailable(device.type == "cuda"))
        self.decoder: Any = None

    def set_up(self) -> Answer:
        model = _model(self.suite, self.device, self.smoke, self.arm.build)
        self.prompt = real_models.prompt(model, self.suite.prompt_tokens, rows=self.suite.rows)
        wanted = faithful.reference(model, self.prompt, self.suite.check_tokens, self.arm.exactness)
        kept = weights.cache_bytes_per_token(model, self.prompt[-1:])
        room = Room(self.prompt, self.suite.prompt_tokens + self.suite.new_tokens, self.smoke)
        start = time.perf_counter()
        self.decoder = self.arm.make(model, room)
        for _ in range(self.arm.warm_ups):
            self.decoder.decode(self.prompt, self.suite.new_tokens)
        warm_s = time.perf_counter() - start
        verdict = faithful.judge(self.decoder, wanted)
        read = weights.read_per_token(model) // self.suite.rows  # of dense models: rows share what is read
        read += int(kept * (self.suite.prompt_tokens + self.suite.new_tokens / 2))
        return {
            "label": self.arm.label, "right": verdict.right, "reason": verdict.reason, "check": verdict.to_json(),
            "warm_s": warm_s, "warm_rounds": self.arm.warm_ups, "notes": room.notes,
            "bytes": {"weights": weight_bytes(model), "read_per_token": read},
            "units": {"decode": "tok/s", "first token": "s"},
            "shares": {"decode": {"ceiling": self.suite.ceiling, "per_unit": read / 1e9, "unit": "GB/s"}},
        }  # fmt: skip

    def round(self) -> Answer:
        with peak_bytes(self.device) as peak:
            start = time.perf_counter()
            done = self.decoder.decode(self.prompt, self.suite.new_tokens)
            seconds = time.perf_counter() - start
        values = {"decode": done.tokens_per_s, "first token": done.first_token_s}
        return {"values": values, "seconds": seconds, "peak_bytes": peak.peak_bytes, "digest": digest(done.tokens)}

    def close(self) -> None:
        if self.decoder is not None:
            self.decoder.close()


class PrefillJob:
    """Tokens per second of a forward, at several lengths; each length is checked by itself."""

    def __init__(self, suite: Suite, arm: str, device: torch.device, smoke: bool) -> None:
        self.suite, self.arm, self.device, self.smoke = suite, prefill.ARMS[arm], device, smoke
        _available(self.arm.unavailable(device.type == "cuda"))

    def set_up(self) -> Answer:
        model = _model(self.suite, self.device, self.smoke, {})
        keep, plain = self.suite.check_tokens, prefill.forward(model)
        self.prompts = {length: real_models.prompt(model, length, length) for length in self.suite.lengths}
        wanted = {length: plain(tokens, keep).float().cpu() for length, tokens in self.prompts.items()}
        for logits in wanted.values():
            faithful.check_sane(logits)
        shortest = self.prompts[min(self.prompts)]
        noise, top1 = faithful.noise_floor(model, shortest, keep, faithful.NOISE[self.arm.exactness])
        flops = self._flops(model)
        room = Room(shortest, max(self.suite.lengths), self.smoke)
        start = time.perf_counter()
        self.run = self.arm.make(model, room)
        got = {length: self.run(tokens, keep).float().cpu() for length, tokens in self.prompts.items()}
        for tokens in self.prompts.values():
            self._time(tokens)
        warm_s = time.perf_counter() - start
        errors = {str(length): faithful.relative_error(got[length], wanted[length]) for length in got}
        tolerance = faithful.tolerance_of(noise)
        bad = [length for length, error in errors.items() if not error <= tolerance]
        reason = "; ".join(f"at {x} its logits lie {errors[x]:.3f} off, {tolerance:.3f} allowed" for x in bad)
        tflops, agree = "TFLOP/s", {str(length): faithful.top1_agreement(got[length], wanted[length]) for length in got}
        return {
            "label": self.arm.label, "right": not bad, "reason": reason, "warm_s": warm_s, "warm_rounds": 2,
            "notes": room.notes, "bytes": {"weights": weight_bytes(model)},
            "check": {"error": errors, "tolerance": tolerance, "noise_error": noise, "noise_top1": top1, "top1": agree},
            "units": {str(length): "tok/s" for length in self.prompts},
            "shares": {
                str(length): {"ceiling": "matmul bfloat16", "per_unit": flops[length] / length / 1e12, "unit": tflops}
                for length in self.prompts
            },
        }  # fmt: skip

    def round(self) -> Answer:
        start, values = time.perf_counter(), {}
        with peak_bytes(self.device) as peak:
            for length, tokens in self.prompts.items():
                values[str(length)] = length / self._time(tokens)
        return {"values": values, "seconds": time.perf_counter() - start, "peak_bytes": peak.peak_bytes}

    def close(self) -> None:
        """Nothing outlives the process."""

    def _time(self, tokens: Tensor) -> float:
        """As many logits are kept as in the check: another number would be compiled anew, and costs no less."""
        return seconds_of(lambda: self.run(tokens, self.suite.check_tokens), self.device)

    def _flops(self, model: nn.Module) -> dict[int, float]:
        config = model.config.get_text_config()
        per_token = weights.flops_per_token(model)
        layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        return {n: per_token * n + layers * attention.flops(n, heads, width) for n in self.suite.lengths}


def digest(tokens: Tensor) -> str:
    """A few letters that tell whether two rounds gave the same tokens."""
    return hashlib.sha256(str(tokens.tolist()).encode()).hexdigest()[:12]


def _model(suite: Suite, device: torch.device, smoke: bool, options: dict[str, Any]) -> nn.Module:
    if suite.model != "demo":
        return real_models.build(suite.model, device, smoke=smoke, **options)
    dtype = getattr(torch, options.get("dtype", "bfloat16"))
    if smoke:
        return real_models.build("qwen3-4b", device, smoke=True).to(dtype)
    from inference_pio.sources.open import open_model

    model = open_model("demo", dtype=dtype, progress=False).model.to(device)
    settings = model.generation_config
    settings.eos_token_id, settings.do_sample = None, False
    return model.requires_grad_(False)


def _available(reason: str | None) -> None:
    if reason:
        raise Unavailable(reason)
