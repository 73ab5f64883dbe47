"""Finished statistics kept in a folder, so that a long calibration goes on where it was cut off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from inference_pio.calibration.input_statistics import InputStatistics
from inference_pio.calibration.source import CalibrationSource
from inference_pio.files import write_atomically


class Kept:
    """One group's statistics in a file that is named by what they were taken of; another source has another name.

    The caller gives each model a folder of its own: weights are not read to tell models apart.
    """

    def __init__(self, folder: Path, source: CalibrationSource, paths: Sequence[str], gram: bool) -> None:
        of = json.dumps([source.digest, list(paths), gram])
        self.file = folder / f"inputs-{hashlib.sha256(of.encode()).hexdigest()[:24]}.safetensors"

    def read(self) -> list[InputStatistics] | None:
        """What was kept, or None where nothing whole is there."""
        try:
            with safe_open(self.file, framework="pt") as opened:
                readers = json.loads(opened.metadata()["readers"])
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        return [
            InputStatistics.of(
                {name: tensors[f"{number}.{name}"] for name in ("count", "total", "absmax", "gram")
                 if f"{number}.{name}" in tensors}, tuple(read_by),
            )
            for number, read_by in enumerate(readers)
        ]  # fmt: skip

    def write(self, statistics: Sequence[InputStatistics]) -> None:
        """Keep them, whole or not at all. Raises StorageError where the folder cannot be written."""
        tensors = {
            f"{number}.{name}": tensor.cpu().contiguous()
            for number, one in enumerate(statistics)
            for name, tensor in one.tensors().items()
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, save(tensors, {"readers": json.dumps([one.readers for one in statistics])}))
