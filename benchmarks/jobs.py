"""One system of one suite, inside its own process: set up, checked, then timed a round at a time.

A job answers in plain JSON. `set_up` says what it took and whether the output is right; `round` gives one value a case.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks import faithful, prefill_job, real_models, weights
from benchmarks.arms import loading, prefill, scoring
from benchmarks.arms.problem import Unavailable
from benchmarks.arms.room import Room
from benchmarks.arms.table import ARMS
from benchmarks.kernel_job import KernelJob, family_of
from benchmarks.load_job import LoadJob, planned_bytes
from benchmarks.score_job import ScoreJob
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
    kinds: dict[str, Any] = {
        "decode": DecodeJob, "prefill": prefill_job.make, "kernels": KernelJob, "load": LoadJob,
        "score": ScoreJob,
    }  # fmt: skip
    return kinds[suite.kind](suite, arm, torch.device(device), smoke)  # type: ignore[no-any-return]


def label_of(suite: Suite, arm: str) -> str:
    if suite.kind == "kernels":
        return str(family_of(suite).ARMS[arm].label)
    if suite.kind == "load":
        return loading.ARMS[arm].label
    if suite.kind == "score":
        return scoring.ARMS[arm].label
    return prefill.ARMS[arm].label if suite.kind == "prefill" else ARMS[arm].label


class DecodeJob:
    """Greedy tokens behind a prompt: tokens per second after the first, and seconds to the first."""

    def __init__(self, suite: Suite, arm: str, device: torch.device, smoke: bool) -> None:
        self.suite, self.arm, self.device, self.smoke = suite, ARMS[arm], device, smoke
        _available(self.arm.unavailable(device.type == "cuda"))
        self.decoder: Any = None

    def set_up(self) -> Answer:
        model = _model(self.suite, self.device, self.smoke, self.arm.build)
        if self.arm.prepare is not None:
            self.arm.prepare(model)
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
        moves_cache = self.suite.moves == "cache"
        read = 0 if moves_cache else weights.read_per_token(model)
        kept *= 1 - self.decoder.stays if moves_cache else 1
        read //= self.suite.rows  # of dense models: rows share what is read
        read += int(kept * (self.suite.prompt_tokens + self.suite.new_tokens / 2))
        if self.suite.moves == "disk":
            read = self.decoder.brought
        return {
            "label": self.arm.label, "right": verdict.right, "reason": verdict.reason, "check": verdict.to_json(),
            "warm_s": warm_s, "warm_rounds": self.arm.warm_ups, "notes": room.notes,
            "bytes": {"weights": weight_bytes(model), "read_per_token": read} | planned_bytes(model),
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
