"""Users: which storages the model still uses, followed edit by edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

import torch
from torch import nn

from inference_pio.errors import InvalidSetting
from inference_pio.undo.slots import contents_of, storage_key


@dataclass
class Unused:
    """The tensors of one storage that nothing in the model uses any more; `needed` where somebody else may."""

    tensors: list[torch.Tensor]
    needed: bool


@dataclass
class _Storage:
    using: set[int] = field(default_factory=set)
    left: list[torch.Tensor] = field(default_factory=list)
    needed: bool = False


class Users:
    """Counts the places of every module and tensor; `others_hold` are the ids of those that outsiders may still use.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> users = Users(model)
    >>> users.leave(model.weight)
    >>> [len(unused.tensors) for unused in users.take_unused()]
    [1]
    """

    def __init__(self, model: nn.Module) -> None:
        self.others_hold: Set[int] = frozenset()
        self._places: Counter[int] = Counter()
        self._tables: Counter[int] = Counter()
        self._storages: dict[int, _Storage] = {}
        self._key: dict[int, int] = {}
        self._maybe_unused: list[int] = []
        self._parked: set[int] = set()
        self.enter(model)

    def knows(self, module: object) -> bool:
        """Whether a module is part of the model now."""
        return self._places[id(module)] > 0

    def sharing(self, tensor: torch.Tensor) -> set[int]:
        """The ids of the model's tensors that use the storage under this one."""
        storage = self._storages.get(storage_key(tensor))
        return storage.using if storage else set()

    def places(self) -> Counter[int]:
        """How many places in the model each module and tensor has, by id."""
        return self._places

    def tables_of(self, tensor: torch.Tensor) -> int:
        """How many tables of modules that were taken out still hold a tensor."""
        return self._tables[id(tensor)]

    def enter(self, value: object, *, with_module: bool = False) -> None:
        """A module or tensor has got a place in the model; `with_module`: as part of a module that came back."""
        if isinstance(value, nn.Module):
            self._places[id(value)] += 1
            if self._places[id(value)] == 1:
                for inner in contents_of(value):
                    self.enter(inner, with_module=True)
        elif isinstance(value, torch.Tensor):
            self._enter_tensor(value, with_module)

    def _enter_tensor(self, tensor: torch.Tensor, with_module: bool) -> None:
        if id(tensor) in self._parked:
            raise InvalidSetting(
                "a tensor comes back into the model that this step has taken out of it: its bytes are parked by now. "
                "Put the new module together first, then put it into the model in one edit."
            )
        self._places[id(tensor)] += 1
        if with_module and self._tables[id(tensor)]:
            self._tables[id(tensor)] -= 1
        if self._places[id(tensor)] == 1:
            self._key[id(tensor)] = storage_key(tensor)
            self._storages.setdefault(storage_key(tensor), _Storage()).using.add(id(tensor))

    def leave(self, value: object, *, needed: bool = False, with_module: bool = False) -> None:
        """A module or tensor has lost a place in the model."""
        needed = needed or id(value) in self.others_hold
        if not isinstance(value, nn.Module | torch.Tensor) or not self._places[id(value)]:
            return
        self._places[id(value)] -= 1
        if isinstance(value, torch.Tensor):
            self._leave_tensor(value, needed, with_module)
        elif not self._places[id(value)]:
            for inner in contents_of(value):
                self.leave(inner, needed=needed, with_module=True)

    def _leave_tensor(self, tensor: torch.Tensor, needed: bool, with_module: bool) -> None:
        self._tables[id(tensor)] += with_module
        key = self._key[id(tensor)]
        storage = self._storages[key]
        storage.needed |= needed
        if self._places[id(tensor)] == 0:
            storage.using.discard(id(tensor))
            if all(tensor is not known for known in storage.left):
                storage.left.append(tensor)
            self._maybe_unused.append(key)

    def left_before(self, tensor: torch.Tensor) -> None:
        """A tensor that an earlier step took out, with its bytes: it goes with those of the model that share them."""
        storage = self._storages.get(storage_key(tensor)) if not self._places[id(tensor)] else None
        if storage is not None and all(tensor is not known for known in storage.left):
            storage.left.append(tensor)
            storage.needed |= id(tensor) in self.others_hold

    def rehoused(self, tensor: torch.Tensor) -> None:
        """A tensor of the model has got another storage."""
        if self._places[id(tensor)]:
            key = self._key[id(tensor)]
            self._storages[key].using.discard(id(tensor))
            self._maybe_unused.append(key)
            self._key[id(tensor)] = storage_key(tensor)
            self._storages.setdefault(storage_key(tensor), _Storage()).using.add(id(tensor))

    def take_unused(self) -> Iterator[Unused]:
        """The storages that have fallen out of use since the last time."""
        keys, self._maybe_unused = dict.fromkeys(self._maybe_unused), []
        for key in keys:
            storage = self._storages[key]
            if not storage.using:
                del self._storages[key]
                if storage.left:
                    yield Unused(storage.left, storage.needed)

    def parked(self, tensors: list[torch.Tensor]) -> None:
        """These tensors are empty from now on: they cannot come back within the step."""
        self._parked.update(map(id, tensors))
