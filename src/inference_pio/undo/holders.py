"""Who else holds a model's objects, told by counting references."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from inference_pio.undo.frame import Frame
from inference_pio.undo.slots import MappingWrite, Slot, Write, tensors_of
from inference_pio.undo.tensors import Park, Rehouse


def held_by_others(objects: list[object], known: Mapping[int, int]) -> set[int]:
    """The ids of those objects that more references lead to than the list's own and the `known` ones.

    A fresh object at the end of the same list shows what the counting itself adds: Python versions differ there.
    """
    objects.append(object())
    counts = [sys.getrefcount(one) for one in objects]
    ours = counts[-1]
    objects.pop()
    held = set()
    for place, count in enumerate(counts[:-1]):
        if count - ours > known.get(id(objects[place]), 0):
            held.add(id(objects[place]))
    return held


def references_of(entry: Write) -> list[int]:
    """The ids of all that one remembered write refers to, once for each reference."""
    if isinstance(entry, MappingWrite):
        return [id(entry.owner), id(entry.before), id(entry.after), id(entry.stood)]
    if isinstance(entry, Park | Rehouse):
        return [id(tensor) for tensor in entry.tensors]
    return []


def taken_out(frames: Iterable[Frame], in_model: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The modules that are not part of the model, but kept by remembered writes, each once."""
    seen: set[int] = set()
    found: list[nn.Module] = []
    for value in _values_in(frames):
        for part in value.modules() if isinstance(value, nn.Module) else ():
            if id(part) not in seen and not in_model(part):
                seen.add(id(part))
                found.append(part)
    return found


def slots_of_tensors(frames: Iterable[Frame]) -> dict[int, set[Slot]]:
    """For each tensor that a remembered write keeps, alone or within a module: the slots of those writes."""
    slots: dict[int, set[Slot]] = {}
    for entry in (entry for frame in frames for entry in frame.entries if isinstance(entry, MappingWrite)):
        for value in (entry.before, entry.after):
            for tensor in tensors_in(value):
                slots.setdefault(id(tensor), set()).add(entry.slot)
    return slots


def tensors_in(value: object) -> Iterable[torch.Tensor]:
    """A tensor, or those of a module; none of anything else."""
    if isinstance(value, nn.Module):
        return tensors_of(value)
    return [value] if isinstance(value, torch.Tensor) else []


def _values_in(frames: Iterable[Frame]) -> Iterator[object]:
    for entry in (entry for frame in frames for entry in frame.entries if isinstance(entry, MappingWrite)):
        yield entry.before
        yield entry.after


def references_in(frames: Iterable[Frame]) -> Counter[int]:
    """How many references the remembered writes of frames hold to each object."""
    return Counter(reference for frame in frames for entry in frame.entries for reference in references_of(entry))
