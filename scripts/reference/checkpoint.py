"""Checkpoints of a training run: safetensors, written beside, synced and renamed, so that a killed run resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def write(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, float | int | list[object]]) -> None:
    """Save tensors and facts as one file; a crash leaves the old file or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        beside,
        {"facts": json.dumps(facts)},
    )
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, float | int | list[object]]]:
    """The tensors and facts of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - no mapping
