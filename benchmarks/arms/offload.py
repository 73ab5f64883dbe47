"""Weights in host memory or on disk, fetched for every layer of every token: accelerate's way, and ours from a disk."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import inference_pio
from benchmarks.arms.decoder import Decoded, Decoder, GenerateDecoder
from benchmarks.arms.room import Room
from benchmarks.cold import forget_all, read_bytes
from inference_pio.measure import weight_bytes

RESIDENT = 0.2
"""Of the plain weights' bytes, what may stay on a GPU while the others come from a disk."""


class FolderDecoder(GenerateDecoder):
    """Its weights lie in a folder of its own: a folder that is there already would be used unchecked."""

    folder = ""

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def cpu_offload(model: nn.Module, room: Room) -> Decoder:
    from accelerate import cpu_offload

    device = room.prompt.device
    return GenerateDecoder(cpu_offload(_on_host(model), execution_device=device))


def disk_offload(model: nn.Module, room: Room) -> Decoder:
    from accelerate import disk_offload

    folder = tempfile.mkdtemp(prefix="offload-")
    decoder = FolderDecoder(disk_offload(_on_host(model), folder, execution_device=room.prompt.device))
    decoder.folder = folder
    room.notes.append("read from the page cache where the host's memory holds the folder")
    return decoder


class ColdDecoder(FolderDecoder):
    """Each token reads its weights from files that no cache holds: these are dropped before each, in time that is not
    counted. `brought` is what came from the disk for a token, as /proc tells it.
    """

    def __init__(self, model: nn.Module, folder: str, room: Room) -> None:
        super().__init__(model, stopping_criteria=[self])
        self.folder, self.room, self._drops = folder, room, list[tuple[float, float]]()

    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        self(prompt, None)
        self._drops.clear()
        before, start = read_bytes(), time.perf_counter()
        done = super().decode(prompt, new_tokens, forced=forced, logits=logits)
        self.brought = (read_bytes() - before) // new_tokens
        first, last = start + done.first_token_s, start + done.first_token_s + done.decode_s
        done.first_token_s -= self._dropping_s(start, first)
        done.decode_s -= self._dropping_s(first, last)
        if not logits and new_tokens > 1:
            self.room.notes = [note for note in self.room.notes if not note.startswith(FROM_DISK)]
            self.room.notes.append(f"{FROM_DISK}{self.brought / 1e9:.3f} GB a token")
        return done

    def __call__(self, tokens: Tensor, scores: object, **_: object) -> Tensor:
        start = time.perf_counter()
        forget_all(Path(self.folder))
        self._drops.append((start, time.perf_counter()))
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    def _dropping_s(self, begin: float, end: float) -> float:
        """Seconds of what was dropped in between; whether a token is told before or after is the library's choice."""
        return sum(last - first for first, last in self._drops if begin < (first + last) / 2 < end)


FROM_DISK = "from the disk came "


def disk_offload_cold(model: nn.Module, room: Room) -> Decoder:
    from accelerate import disk_offload

    folder = tempfile.mkdtemp(prefix="offload-")
    return ColdDecoder(disk_offload(_on_host(model), folder, execution_device=room.prompt.device), folder, room)


def from_disk(threads: int | None = None, weights: str | None = None) -> Callable[[nn.Module, Room], Decoder]:
    """Layers streamed by inference-pio from a disk, none of them waiting on the host; `threads` for those it takes,
    `weights` for the format that they are kept in. As many bytes stay in memory whatever that is.
    """

    def make(model: nn.Module, room: Room) -> Decoder:
        folder = tempfile.mkdtemp(prefix="offload-")
        stays = int(weight_bytes(model) * RESIDENT)
        if weights is not None:
            given = {"tensor_compression": {"format": weights}}
            inference_pio.get_optimization_manager().apply_optimizations(model, list(given), parameters=given)
        stream_from_disk(model, room, folder, threads, stays)
        return ColdDecoder(model, folder, room)

    return make


def stream_from_disk(
    model: nn.Module, room: Room, folder: str, threads: int | None = None, stays: int | None = None
) -> None:
    """`stays` bytes of weights in a GPU's memory, a fifth of them unless given; of a CPU's four fifths."""
    on_gpu = next(model.parameters()).is_cuda
    stays = int(weight_bytes(model) * RESIDENT) if stays is None else stays
    budget: dict[str, Any] = {"gpu_budget": stays, "host_budget": 1} if on_gpu else {"host_budget": "80%"}
    manager = inference_pio.get_optimization_manager()
    given = budget | {"folder": folder} | ({"threads": threads} if threads else {})
    manager.apply_optimizations(model, ["disk_offloading"], parameters={"disk_offloading": given})
    receipt = manager.get_receipts(model)[-1]
    room.notes += [*receipt.notes, f"by {receipt.backend}"]


def _on_host(model: nn.Module) -> nn.Module:
    model.to("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model
