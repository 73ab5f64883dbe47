"""What a step finds when it begins: paths, names, who uses each storage, and whom else the model's parts belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from inference_pio.compat import torch_holds
from inference_pio.undo.frame import Frame
from inference_pio.undo.holders import (
    held_by_others,
    references_in,
    references_of,
    slots_of_tensors,
    taken_out,
    tensors_in,
)
from inference_pio.undo.module_walk import modules_of, named_modules_of
from inference_pio.undo.places import Places
from inference_pio.undo.slots import MappingWrite, Slot, Write, contents_of, tensors_of
from inference_pio.undo.tensors import PutAway, Rehouse
from inference_pio.undo.users import Users


class Survey:
    """A look at the model before a step has taken references of its own, then kept up to date by the journal.

    Whoever parks nothing need not know whom else its tensors belong to: without `parks` nobody is asked.
    """

    def __init__(self, model: nn.Module, frames: Sequence[Frame], *, parks: bool = True) -> None:
        self.parks = parks
        self.users = Users(model)
        outside = taken_out(frames, self.users.knows)
        self.references = references_in(frames)
        self.references.update(id(value) for part in outside for value in contents_of(part))
        if parks:
            self.users.others_hold = self._others_hold(_objects_of(model) + outside, outside)
        self._note_what_left(frames, outside)
        self.places = Places(model)
        self.names = {id(tensor): name for name, tensor in reversed(list(named_tensors(model)))}
        """Of several names the first, as checkpoints have it of a tied weight."""
        self._slots = slots_of_tensors(frames)
        self._rehoused: dict[int, Rehouse] = {}
        for frame in frames:
            for entry in frame.entries:
                self._note_home(entry)

    def _others_hold(self, objects: list[object], outside: list[nn.Module]) -> set[int]:
        known = self.references + self.users.places()
        known.update(map(id, outside))
        held = held_by_others(objects, known)
        held |= {id(one) for one in objects if torch_holds(one)}
        return held | {id(tensor) for part in outside if id(part) in held for tensor in tensors_of(part)}

    def _note_what_left(self, frames: Sequence[Frame], outside: list[nn.Module]) -> None:
        written = (entry for frame in frames for entry in frame.entries if isinstance(entry, MappingWrite))
        for value in (*outside, *(value for entry in written for value in (entry.before, entry.after))):
            for tensor in tensors_in(value):
                self.users.left_before(tensor)

    def _note_home(self, entry: Write) -> None:
        if isinstance(entry, Rehouse):
            self._rehoused.update((id(tensor), entry) for tensor in entry.tensors)

    def wrote(self, entry: Write) -> None:
        """Follow a write that was made."""
        self.references.update(references_of(entry))
        self._note_home(entry)
        if isinstance(entry, Rehouse | PutAway):
            for tensor in entry.tensors:
                self.users.rehoused(tensor)

    def slots_under(self, tensors: Iterable[torch.Tensor]) -> set[Slot]:
        """What earlier steps wrote of these tensors, and to them: taking that back alone would meet them changed."""
        found: set[Slot] = set()
        for tensor in tensors:
            found |= self._slots.get(id(tensor), set())
            if (moved := self._rehoused.get(id(tensor))) is not None:
                found |= {moved.slot, *moved.others}
        return found

    def rehoused_before(self, tensors: Iterable[torch.Tensor]) -> list[Rehouse | None]:
        """The last write, if any, that moved each of these tensors' bytes."""
        return [self._rehoused.get(id(tensor)) for tensor in tensors]

    def still_held(self, tensors: list[torch.Tensor]) -> bool:
        """Whether something besides the modules that were taken out and the journal refers to one of these tensors."""
        known = {id(tensor): self.users.tables_of(tensor) + self.references[id(tensor)] for tensor in tensors}
        return bool(held_by_others(list(tensors), {key: count + 1 for key, count in known.items()}))


def _objects_of(model: nn.Module) -> list[object]:
    """Every module and tensor of a model, once; nothing else here refers to them when it returns."""
    objects: list[object] = list(modules_of(model))
    seen: set[int] = set()
    for tensor in tensors_of(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            objects.append(tensor)
    return objects


def named_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters and buffers with all their names, tied ones once for each."""
    named = named_modules_of(model, all_names=True)
    for table in ("_parameters", "_buffers"):
        for path, module in named:
            for name, tensor in module.__dict__[table].items():
                if tensor is not None:
                    yield (f"{path}.{name}" if path else name), tensor
