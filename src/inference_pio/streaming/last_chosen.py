"""Which slot holds which expert of one layer: those that were chosen last, the oldest of them going first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class LastChosen:
    """Places of experts in `capacity` slots; it moves no bytes.

    >>> kept = LastChosen(2)
    >>> kept.place([5, 7]), kept.use([5]), kept.place([9])
    ({5: 0, 7: 1}, None, {9: 1})
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._places: OrderedDict[int, int] = OrderedDict()
        self._free = list(range(capacity))

    def __contains__(self, expert: object) -> bool:
        return expert in self._places

    def __getitem__(self, expert: int) -> int:
        return self._places[expert]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def free(self) -> int:
        """Slots that hold nothing yet."""
        return len(self._free)

    def use(self, experts: Iterable[int]) -> None:
        """These were chosen now."""
        for expert in experts:
            self._places.move_to_end(expert)

    def place(self, experts: Sequence[int]) -> dict[int, int]:
        """Slots for experts that have none; those that were chosen longest ago make room."""
        found = {}
        for expert in experts:
            slot = self._free.pop(0) if self._free else self._places.popitem(last=False)[1]
            found[expert] = self._places[expert] = slot
        return found

    def drop(self, experts: Iterable[int]) -> None:
        """The slots of these hold nothing that can be computed with."""
        for expert in experts:
            self._free.append(self._places.pop(expert))

    def table(self, experts: int) -> list[int]:
        """The slot of each expert by number; the capacity, which stands for one that lives elsewhere, where none.

        >>> LastChosen(2).table(3)
        [2, 2, 2, 2]
        """
        found = [self.capacity] * (experts + 1)
        for expert, slot in self._places.items():
            found[expert] = slot
        return found
