"""Slots: the places of a model that an edit can write, and the writes that remember what stood there."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, MutableSet
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from inference_pio.undo.key_order import KeyOrder
from inference_pio.undo.module_walk import modules_of


class _Absent:
    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()
"""What stood in a slot that did not exist."""


class Slot(NamedTuple):
    """A place as a name: the path of the object that owns it, the table in that object, the key in that table."""

    owner: str
    table: str
    key: str

    def __str__(self) -> str:
        return ".".join(part for part in (self.owner, str(self.key)) if part)


class Write(Protocol):
    """One remembered write. `undo` and `redo` may be called again after an interrupted call.

    `redo` after an `undo` brings back what stood just before that undo, were it somebody else's value.
    """

    slot: Slot

    def redo(self) -> None: ...
    def undo(self) -> None: ...


@dataclass(eq=False)
class MappingWrite:
    """`mapping[key] = after` (ABSENT: the key goes); an undo gives the key back its place among the others."""

    slot: Slot
    mapping: MutableMapping[Any, Any]
    key: Any
    after: Any
    owner: object = None
    first: bool = False
    order: KeyOrder | None = None

    def __post_init__(self) -> None:
        self.before = self.current
        self.stood = self.after
        self._order = self.order or KeyOrder(self.mapping)
        self._stands = False
        self._moving = False

    @property
    def current(self) -> Any:
        return self.mapping.get(self.key, ABSENT)

    def redo(self) -> None:
        if not self._stands:
            self._put(self.stood)
            self._stands = True

    def undo(self) -> None:
        if self._stands:
            self.stood = self.current
            self._stands = False
        self._put(self.before)

    def _put(self, value: Any) -> None:
        """Write a value; `_moving` tells a call after an interrupted one that the order was noted already."""
        if not self._moving and (value is ABSENT) == (self.key not in self.mapping):
            if value is not ABSENT:
                self.mapping[self.key] = value
            return
        if not self._moving:
            self._order.note()
            self._moving = True
        if value is not ABSENT:
            self._order.admit(self.key, self.first)
            self.mapping[self.key] = value
            self._order.restore()
        elif self.key in self.mapping:
            del self.mapping[self.key]
        self._moving = False


@dataclass(eq=False)
class MemberWrite:
    """A name that enters or leaves a set, such as a module's non-persistent buffers."""

    slot: Slot
    members: MutableSet[Any]
    key: Any
    after: bool
    owner: object = None

    def __post_init__(self) -> None:
        self.before = self.current
        self.stood = self.after
        self._stands = False

    @property
    def current(self) -> bool:
        return self.key in self.members

    def redo(self) -> None:
        if not self._stands:
            self._put(self.stood)
            self._stands = True

    def undo(self) -> None:
        if self._stands:
            self.stood = self.current
            self._stands = False
        self._put(self.before)

    def _put(self, member: bool) -> None:
        (self.members.add if member else self.members.discard)(self.key)


@dataclass(eq=False)
class ModuleWrite(MappingWrite):
    """A child module that takes another's place; a `train()`/`eval()` meant for it reaches the original on undo."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._mode = self.after.training if isinstance(self.after, nn.Module) else None

    def undo(self) -> None:
        super().undo()
        if isinstance(self.before, nn.Module) and self._mode is not None and self.after.training != self._mode:
            self.before.train(self.after.training)
            self._mode = self.after.training


def contents_of(module: nn.Module) -> list[torch.Tensor | nn.Module]:
    """A module's own parameters, buffers and children, once for each name they have."""
    tables = (module._parameters, module._buffers, module._modules)
    return [value for table in tables for value in table.values() if value is not None]


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Every parameter and buffer below a module, once for each name it has."""
    for part in modules_of(module):
        for table in (part._parameters, part._buffers):
            for tensor in table.values():
                if tensor is not None:
                    yield tensor


def storage_key(tensor: torch.Tensor) -> int:
    """What tensors that share memory have in common; meta tensors, which have no memory, stand for themselves."""
    return id(tensor) if tensor.is_meta or tensor.numel() == 0 else tensor.untyped_storage().data_ptr()
