"""Set aside: what has been made of a layer's weights leaves memory, while the model loads, if they are to stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from inference_pio.undo.awaited import MARK, Awaited, awaited_of, origin_of
from inference_pio.undo.parked import View
from inference_pio.undo.slots import tensors_of
from inference_pio.undo.vault import Vault


class Aside:
    """Where the weights of modules, by path, wait until they are put on stream: on the host, or in files of our own."""

    def __init__(self, in_host: Mapping[str, bool], folder: Path) -> None:
        self._in_host = in_host
        self._host, self._disk = Vault("host"), Vault("disk", folder)

    def ended_by(self, paths: Sequence[str]) -> dict[int, list[str]]:
        """For places in a sequence of paths: the modules of which nothing comes after them.

        >>> Aside({"layers.0": True}, Path()).ended_by(["layers.0.up", "layers.0.down", "layers.1.up"])
        {1: ['layers.0']}
        """
        last = {
            whole: max(place for place, path in enumerate(paths) if f"{path}.".startswith(f"{whole}."))
            for whole in self._in_host
            if any(f"{path}.".startswith(f"{whole}.") for path in paths)
        }
        found: dict[int, list[str]] = {}
        for whole, place in last.items():
            found.setdefault(place, []).append(whole)
        return found

    def put(self, model: nn.Module, path: str) -> None:
        """Let the tensors of a module wait again: for their place in the checkpoint, or for what was set aside."""
        vault = self._host if self._in_host[path] else self._disk
        for tensor in tensors_of(model.get_submodule(path)):
            if awaited_of(tensor) is not None or not tensor.numel():
                continue
            known = origin_of(tensor)
            if known is not None:
                tensor.data, known.here = known.stand_in, False
            elif tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
                _wait(tensor, vault)


def into(load: Callable[[], torch.Tensor]) -> Callable[[torch.Tensor | None], torch.Tensor]:
    """A way to bring bytes as one that also copies them to a target."""
    return lambda target: load() if target is None else target.copy_(load())


def _wait(tensor: torch.Tensor, vault: Vault) -> None:
    view = View.of(tensor)
    parked = vault.park([tensor], {})
    stand_in = view.stand_in()
    mark = Awaited(view, (), into(parked.load), parked.load, stand_in, checksum=parked.checksum)
    tensor.data = stand_in
    setattr(tensor, MARK, mark)
