"""Tensors written as they come, in files of bounded size with an index, as the hub's checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 5 * 10**9
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Shards:
    """Holds no more than one file's tensors in memory; `close` gives the files their names."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = self.total_bytes = 0
        self._written: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """A tensor of any device; a view is copied, since a file holds no two tensors of one storage."""
        data = tensor.detach().cpu().contiguous()
        if data.untyped_storage().nbytes() != data.nbytes:
            data = data.clone()
        if self._held and self._held_bytes + data.nbytes > self._shard_bytes:
            self._flush()
        self._held[name] = data
        self._held_bytes += data.nbytes
        self.total_bytes += data.nbytes

    def close(self) -> None:
        self._flush()
        count = len(self._written)
        if count == 1:
            self._place(1).rename(self._folder / WHOLE)
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self._written, 1):
            file = f"model-{number:05}-of-{count:05}.safetensors"
            self._place(number).rename(self._folder / file)
            where |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": where}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _flush(self) -> None:
        self._written.append(list(self._held))
        save_file(self._held, self._place(len(self._written)), metadata={"format": "pt"})
        self._held, self._held_bytes = {}, 0

    def _place(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"
