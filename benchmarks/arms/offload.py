"""accelerate's offloading: weights in host memory or on disk, fetched for every layer of every token."""

from __future__ import annotations

import shutil
import tempfile

import torch
from torch import nn

from benchmarks.arms.decoder import Decoder, GenerateDecoder
from benchmarks.arms.room import Room


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


def _on_host(model: nn.Module) -> nn.Module:
    model.to("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model
