"""A system that loads a checkpoint: its answer checked, then timed from a cold disk, with the memory that it took."""

from __future__ import annotations

import gc
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import inference_pio
from benchmarks import real_models
from benchmarks.arms.loading import ARMS
from benchmarks.cold import forget, read_bytes
from benchmarks.suites import Suite
from inference_pio.measure import peak_bytes, weight_bytes
from inference_pio.streaming.hooks import stream_of

Answer = dict[str, Any]
SAMPLE_S = 0.002


class LoadJob:
    """GB of the checkpoint a second, from files that no cache holds; the loaded model must give the same logits, to
    the bit, as the one that was saved and then given the same.
    """

    def __init__(self, suite: Suite, arm: str, device: torch.device, smoke: bool) -> None:
        self.suite, self.arm, self.device, self.smoke = suite, ARMS[arm], device, smoke
        self.folder = Path(tempfile.mkdtemp(prefix="load-"))
        self.notes: list[str] = []

    def set_up(self) -> Answer:
        model: Any = real_models.build(self.suite.model, self.device, smoke=self.smoke)
        self.prompt = real_models.prompt(model, self.suite.prompt_tokens)
        model.save_pretrained(self.folder)
        self.files = sorted(self.folder.glob("*.safetensors"))
        self.nbytes = sum(file.stat().st_size for file in self.files)
        unit = max(sum(one.nbytes for one in layer.parameters()) for layer in model.model.layers)
        if self.arm.parameters:
            manager = inference_pio.get_optimization_manager()
            manager.apply_optimizations(model, list(self.arm.parameters), parameters=self.arm.parameters)
        wanted = self._logits(model)
        del model
        self._free()
        loaded, warm_s, _ = self._loaded(told=True)
        right = torch.equal(self._logits(loaded), wanted)
        held = weight_bytes(loaded)
        planned = planned_bytes(loaded)
        del loaded
        self._free()
        return {
            "label": self.arm.label, "right": right, "reason": "" if right else "its logits are not those of the model",
            "check": {"bit_equal": right}, "warm_s": warm_s, "warm_rounds": 1, "notes": self.notes,
            "bytes": {"weights": held, "checkpoint": self.nbytes, "unit": unit} | planned,
            "units": {"load": "GB/s", "seconds": "s"},
            "shares": {"load": {"ceiling": "disk read", "per_unit": 1.0, "unit": "GB/s"}},
        }  # fmt: skip

    def round(self) -> Answer:
        model, seconds, peak = self._loaded()
        logits = self._logits(model)
        del model
        self._free()
        values = {"load": self.nbytes / seconds / 1e9, "seconds": seconds}
        return {"values": values, "seconds": seconds, "peak_bytes": peak, "digest": digest(logits)}

    def _loaded(self, *, told: bool = False) -> tuple[nn.Module, float, int]:
        """A model loaded from files that no cache holds, the seconds, and the device's peak."""
        for file in self.files:
            forget(file)
        read = read_bytes()
        with peak_bytes(self.device) as peak, own_memory() as own:
            start = time.perf_counter()
            model = self.arm.load(self.folder, self.device)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
        if told:
            self.notes.append(
                f"{(read_bytes() - read) / 1e9:.2f} of {self.nbytes / 1e9:.2f} GB came from the disk; the host's own "
                f"memory grew by {(own['peak'] - own['before']) / 1e9:.2f} GB at most, the device's peak was "
                f"{peak.peak_bytes / 1e9:.2f} GB"
            )
        return model, seconds, peak.peak_bytes

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _logits(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(input_ids=self.prompt).logits
        return logits.cpu()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def planned_bytes(model: nn.Module) -> dict[str, int]:
    """What the plan of a model that streams foretold of the device's memory."""
    if stream_of(model) is None:
        return {}
    receipts = inference_pio.get_optimization_manager().get_receipts(model)
    planned = [one.decision["memory_bytes"] for one in receipts if "memory_bytes" in one.decision]
    return {"planned": planned[-1]} if planned else {}


@contextmanager
def own_memory() -> Iterator[dict[str, int]]:
    """The most of the host's memory that is this process's own, mapped files and the page cache left out."""
    done, found = threading.Event(), {"before": _own()}
    found["peak"] = found["before"]

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            found["peak"] = max(found["peak"], _own())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _own() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def digest(logits: Tensor) -> str:
    return hashlib.sha256(logits.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:12]
