"""What a step finds when it begins: paths, names, who uses each storage, and whom else the model's parts belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from inference_pio.compat import graph_holds
from inference_pio.undo.frame import Frame
from inference_pio.undo.holders import held_by_others, references_in, references_of
from inference_pio.undo.places import Places
from inference_pio.undo.slots import Write, tensors_of
from inference_pio.undo.tensors import Rehouse
from inference_pio.undo.users import Users


class Survey:
    """A look at the model before a step has taken references of its own, then kept up to date by the journal."""

    def __init__(self, model: nn.Module, frames: Sequence[Frame]) -> None:
        self.references = references_in(frames)
        self.users = Users(model)
        objects = _objects_of(model)
        held = held_by_others(objects, self.references + self.users.places())
        self.users.others_hold = held | {id(one) for one in objects if graph_holds(one)}
        del objects
        self.places = Places(model)
        self.names = {id(tensor): name for name, tensor in named_tensors(model)}
        self._rehoused = {
            id(tensor): entry
            for frame in frames
            for entry in frame.entries
            if isinstance(entry, Rehouse)
            for tensor in entry.tensors
        }

    def wrote(self, entry: Write) -> None:
        """Follow a write that was made."""
        self.references.update(references_of(entry))
        if isinstance(entry, Rehouse):
            for tensor in entry.tensors:
                self._rehoused[id(tensor)] = entry
                self.users.rehoused(tensor)

    def rehoused_before(self, tensors: Iterable[torch.Tensor]) -> list[Rehouse | None]:
        """The last write, if any, that moved each of these tensors' bytes."""
        return [self._rehoused.get(id(tensor)) for tensor in tensors]

    def still_held(self, tensors: list[torch.Tensor]) -> bool:
        """Whether something besides the modules that were taken out and the journal refers to one of these tensors."""
        known = {id(tensor): self.users.tables_of(tensor) + self.references[id(tensor)] for tensor in tensors}
        return bool(held_by_others(list(tensors), {key: count + 1 for key, count in known.items()}))


def _objects_of(model: nn.Module) -> list[object]:
    """Every module and tensor of a model, once; nothing else here refers to them when it returns."""
    objects: list[object] = list(model.modules())
    seen: set[int] = set()
    for tensor in tensors_of(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            objects.append(tensor)
    return objects


def named_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters and buffers with all their names, tied ones once for each."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
