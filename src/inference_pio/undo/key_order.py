"""The order of a mapping's keys through deletions, whichever of them is taken back first."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any


class KeyOrder:
    """The keys of one mapping in their order, with the places of those that an undo may bring back.

    Deleting a key and setting it again would move it to the end, and so change the order of a state_dict. Steps are
    taken back in any order, so no single write can know where its key belongs: all writes of a mapping share this.

    >>> table = {"a": 1, "b": 2, "c": 3}
    >>> order = KeyOrder(table)
    >>> del table["b"]
    >>> table["b"] = 2
    >>> order.restore()
    >>> list(table)
    ['a', 'b', 'c']
    """

    def __init__(self, mapping: MutableMapping[Any, Any]) -> None:
        self.mapping = mapping
        self._keys = list(mapping)

    def note(self) -> None:
        """Take in keys that have come, gone or moved; one that is away keeps its place behind the one before it."""
        present = list(self.mapping)
        if [key for key in self._keys if key in self.mapping] == present:
            return
        merged = list(present)
        for place, key in enumerate(self._keys):
            if key not in self.mapping:
                merged.insert(merged.index(self._keys[place - 1]) + 1 if place else 0, key)
        self._keys = merged

    def admit(self, key: Any, first: bool = False) -> None:
        """Give a new key its place: behind all others, or before them."""
        if key not in self._keys:
            self._keys.insert(0 if first else len(self._keys), key)

    def restore(self) -> None:
        """Bring the mapping's keys into this order; it stays the same object."""
        reorder(self.mapping, self._keys)


def reorder(mapping: MutableMapping[Any, Any], order: Sequence[Any]) -> None:
    """Give a mapping's keys the order wanted, the others after them; the mapping stays the same object."""
    present = [key for key in order if key in mapping]
    known = set(present)
    wanted = present + [key for key in mapping if key not in known]
    if wanted != list(mapping):
        for key, value in [(key, mapping[key]) for key in wanted]:
            del mapping[key]  # no call stands between these two lines, so no Ctrl-C can: the key is never lost
            mapping[key] = value
