"""Who else holds a model's objects, told by counting references."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping

from inference_pio.undo.frame import Frame
from inference_pio.undo.slots import MappingWrite, Write
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


def references_in(frames: Iterable[Frame]) -> Counter[int]:
    """How many references the remembered writes of frames hold to each object."""
    return Counter(reference for frame in frames for entry in frame.entries for reference in references_of(entry))
