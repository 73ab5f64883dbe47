"""The journal: the one object through which a model is edited, and through which every edit is taken back."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from inference_pio.errors import InvalidSetting
from inference_pio.undo.frame import Frame
from inference_pio.undo.key_order import KeyOrder
from inference_pio.undo.parked import Parked
from inference_pio.undo.slots import ABSENT, MappingWrite, MemberWrite, ModuleWrite, Slot, Write, storage_key
from inference_pio.undo.survey import Survey
from inference_pio.undo.tensors import Park, PutAway, Rehouse
from inference_pio.undo.users import Unused
from inference_pio.undo.vault import Vault

HookKind = Literal["forward_pre", "forward"]
TABLES = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "module"}


class Journal:
    """Remembers before it writes; a frame per step; a `Transaction` takes frames back.

    >>> model = nn.Linear(2, 2)
    >>> journal = Journal(model)
    >>> with journal.step("rename") as frame:
    ...     journal.set(model, "label", "fast")
    >>> [str(slot) for slot in frame.writes]
    ['label']
    """

    def __init__(self, model: nn.Module, vault: Vault | None = None) -> None:
        self.model = model
        self.vault = vault or Vault()
        self.base = Frame("(base)")
        self.frames: list[Frame] = []
        self._open: Frame | None = None
        self._seen: Survey | None = None
        self._orders: weakref.WeakValueDictionary[int, KeyOrder] = weakref.WeakValueDictionary()

    # ------------------------------------------------------------------ steps

    @contextmanager
    def step(self, name: str, into: Frame | None = None) -> Iterator[Frame]:
        """Open a frame; whatever leaves the block as an exception takes this step's writes back with it."""
        if self._open is not None:
            raise InvalidSetting(
                f"step {name!r} cannot begin inside step {self._open.name!r}: steps follow each other."
            )
        frame = into or Frame(name)
        mark, mark_deferred, kept_bytes = len(frame.entries), len(frame.deferred), frame.kept_in_place_bytes
        try:
            parks = into is None and self.vault.keep != "device"
            self._open, self._seen = frame, Survey(self.model, [self.base, *self.frames], parks=parks)
            yield frame
            if into is None:
                self.frames.append(frame)
        except BaseException:
            self.frames[:] = [one for one in self.frames if one is not frame]
            try:
                frame.unwind(mark)
            finally:
                frame.kept_in_place_bytes = kept_bytes
                frame.end_deferred(mark_deferred)
            raise
        finally:
            self._open = self._seen = None

    @property
    def frame(self) -> Frame:
        if self._open is None:
            raise InvalidSetting("a model is edited inside a step only: with journal.step('name'): ...")
        return self._open

    @property
    def _survey(self) -> Survey:
        if self._seen is None:
            raise InvalidSetting("a model is edited inside a step only: with journal.step('name'): ...")
        return self._seen

    def _write(self, entry: Write) -> None:
        """The single door of every edit: remembered first, written second."""
        self.frame.entries.append(entry)
        entry.redo()
        self._survey.wrote(entry)

    # ------------------------------------------------------------------ verbs

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module, configuration or plain object, as `setattr` would, but remembered.

        Raises InvalidSetting where an entry in the owner's `__dict__` would not show (properties, renamed settings).
        """
        self._watch_owner(owner)
        table = _table_for(owner, name, value) if isinstance(owner, nn.Module) else "__dict__"
        if isinstance(owner, nn.Module):
            for other in TABLES:
                if other != table and name in owner.__dict__[other]:
                    self._drop(owner, other, name)
            if table != "__dict__" and name in owner.__dict__:
                self._put(owner, "attribute", owner.__dict__, name, ABSENT)
        mapping = _attributes(owner) if table == "__dict__" else owner.__dict__[table]
        self._put(owner, TABLES.get(table, "attribute"), mapping, name, value)
        if table == "__dict__":
            _check_it_shows(owner, name, value)
        self._park_unused()

    def delete(self, owner: Any, name: str) -> None:
        """Delete an attribute, parameter, buffer or child."""
        self._watch_owner(owner)
        tables = [table for table in TABLES if isinstance(owner, nn.Module) and name in owner.__dict__[table]]
        if tables:
            self._drop(owner, tables[0], name)
            self._park_unused()
            return
        mapping = _attributes(owner)
        if name not in mapping:
            raise AttributeError(f"{self._path(owner) or type(owner).__name__} has no {name!r} to delete")
        self._put(owner, "attribute", mapping, name, ABSENT)

    def replace(self, module: nn.Module, new: nn.Module) -> nn.Module:
        """Put a module in another's place, under every parent that holds it; returns the new one."""
        parents = self._survey.places.parents(module)
        if not parents:
            raise InvalidSetting(f"{type(module).__name__} is not a child of this model, so it cannot be replaced.")
        self._give_mode(new, module.training)
        for parent, name in parents:
            self._watch_owner(parent)
            self._put(parent, "module", parent._modules, name, new)
        self._park_unused()
        return new

    def register(self, owner: Any, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set an entry of a mapping that belongs to an object of the model (ABSENT takes the entry out)."""
        if not isinstance(mapping, MutableMapping):
            raise InvalidSetting(f"a {type(mapping).__name__} is not a mapping, so nothing can be registered in it.")
        self._watch_owner(owner)
        table = next((name for name in TABLES if mapping is getattr(owner, "__dict__", {}).get(name)), None)
        self._put(owner, TABLES[table] if table else "entry", mapping, key, value)
        self._park_unused()

    def hook(
        self, module: nn.Module, kind: HookKind, function: Callable[..., Any], *, with_kwargs: bool = False,
        prepend: bool = False, always_call: bool = False,
    ) -> None:  # fmt: skip
        """Register a forward hook or pre-hook on one module; `always_call`: also where its forward raises."""
        self._watch_owner(module)
        hooks = module.__dict__[f"_{kind}_hooks"]
        key = RemovableHandle(hooks).id
        for wanted, flag in ((with_kwargs, "with_kwargs"), (always_call, "always_called")):
            if wanted:
                flags = module.__dict__[f"_{kind}_hooks_{flag}"]
                self._put(module, f"{kind}_hooks_{flag}", flags, key, True)
        self._put(module, f"{kind}_hooks", hooks, key, function, first=prepend)

    def rehouse(self, homes: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """Move tensors' bytes, unchanged, into other tensors; all tensors that share one storage move together."""
        groups: dict[int, list[torch.Tensor]] = {}
        for tensor in homes:
            groups.setdefault(storage_key(tensor), []).append(tensor)
        for tensors in groups.values():
            self._check_whole(tensors)
        for tensors in groups.values():
            slots = self._moving(tensors)
            under = self._survey.rehoused_before(tensors)
            self._write(Rehouse(slots[0], tensors, [homes[tensor] for tensor in tensors], under, tuple(slots[1:])))
        self._park_unused()

    def put_away(self, tensors: Sequence[torch.Tensor], parked: Parked, rest: Callable[[], None]) -> None:
        """Let the bytes of one storage leave memory; the tensors on it keep their look, and `parked` has the bytes.

        Whoever shows the true values while they are needed does so by itself; `rest` makes it stop.
        """
        found = list(tensors)
        self._check_whole(found)
        slots = self._moving(found)
        under = self._survey.rehoused_before(found)
        self._write(PutAway(slots[0], found, parked, under, rest=rest, others=tuple(slots[1:])))
        self._park_unused()

    def arrived(self, tensors: Iterable[torch.Tensor]) -> None:
        """Bytes that tensors of a model were waiting for have come during this step: no edit, but another storage."""
        for tensor in tensors:
            self._survey.users.rehoused(tensor)

    def defer(self, close: Callable[[], object]) -> None:
        """Call this once the step has been taken back (to end threads, close files); it may not touch the model."""
        self.frame.deferred.append(close)

    def watch(self, path: str, *, whole: bool = True) -> None:
        """Say that this step's result depends on what stands at a path (`whole`: and on all below it)."""
        self.frame.watch(path, whole)

    # ------------------------------------------------------------------ inner parts

    def _put(
        self, owner: Any, table: str, mapping: MutableMapping[Any, Any], key: Any, value: Any, first: bool = False
    ) -> None:
        """One write in one mapping; parameters, buffers and children that come or go are counted."""
        users = self._survey.users
        counted = table in TABLES.values() and users.knows(owner)
        known_owner = None if isinstance(owner, nn.Module) and not users.knows(owner) else owner
        kind = ModuleWrite if table == "module" else MappingWrite
        order = self._order_of(mapping)
        entry = kind(Slot(self._path(owner), table, str(key)), mapping, key, value, known_owner, first, order)
        self._write(entry)
        if counted:
            if isinstance(value, nn.Module):
                self._survey.places.learn_child(owner, str(key), value)
            users.leave(entry.before)
            users.enter(value)

    def _check_whole(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raise InvalidSetting unless these are all tensors of the model on their one storage."""
        if left := self._survey.users.sharing(tensors[0]) - set(map(id, tensors)):
            raise InvalidSetting(
                f"{', '.join(sorted(map(self._name, left)))} shares its memory with {self._name(id(tensors[0]))}: "
                "tensors of one storage are moved in one call."
            )

    def _moving(self, tensors: Sequence[torch.Tensor]) -> list[Slot]:
        """The slots of tensors whose bytes are about to move; the step depends on where they lay."""
        slots = [self._data_slot(tensor) for tensor in tensors]
        for slot in slots:
            self.frame.watch(slot.owner, whole=False)
        self.frame.reads |= self._survey.slots_under(tensors)
        return slots

    def _order_of(self, mapping: MutableMapping[Any, Any]) -> KeyOrder:
        order = self._orders.get(id(mapping))
        if order is None:
            order = self._orders[id(mapping)] = KeyOrder(mapping)
        return order

    def _drop(self, owner: nn.Module, table: str, name: str) -> None:
        self._put(owner, TABLES[table], owner.__dict__[table], name, ABSENT)
        if table == "_buffers" and name in owner._non_persistent_buffers_set:
            slot = Slot(self._path(owner), "non_persistent", name)
            self._write(MemberWrite(slot, owner._non_persistent_buffers_set, name, False, owner=owner))

    def _path(self, owner: object) -> str:
        return self._survey.places.path(owner)

    def _name(self, tensor_id: int) -> str:
        return self._survey.names.get(tensor_id, "a tensor")

    def _data_slot(self, tensor: torch.Tensor, table: str = "data") -> Slot:
        owner, _, name = self._survey.names.get(id(tensor), "").rpartition(".")
        return Slot(owner, table, name)

    def _watch_owner(self, owner: Any) -> None:
        if isinstance(owner, nn.Module) and owner is not self.model:
            for parent, name in self._survey.places.parents(owner)[:1]:
                path = ".".join(filter(None, (self._path(parent), name)))
                self.frame.watch(path, whole=False)

    def _give_mode(self, new: nn.Module, training: bool) -> None:
        """Put new modules into the mode of the one they replace; parts of the model within them keep their own."""
        for part in new.modules():
            if not self._survey.users.knows(part):
                part.training = training

    def _park_unused(self) -> None:
        """Park each storage that no tensor of the model uses any more."""
        for unused in self._survey.users.take_unused():
            self._park(unused)

    def _park(self, unused: Unused) -> None:
        needed = not self._survey.parks or unused.needed or self._survey.still_held(unused.tensors)
        first = unused.tensors[0]
        if needed or self.vault.keeps_in_place(first) or not first.numel():
            if not first.is_meta:
                self.frame.kept_in_place_bytes += first.untyped_storage().nbytes()
            return
        self._survey.users.parked(unused.tensors)
        self.frame.reads |= self._survey.slots_under(unused.tensors)
        under = self._survey.rehoused_before(unused.tensors)
        parked = self.vault.park(unused.tensors, self._survey.names)
        entry = Park(self._data_slot(first, "parked"), unused.tensors, parked, under)
        try:
            self._write(entry)
        finally:
            if entry not in self.frame.entries:
                parked.discard()


def unwind(frame: Frame, mark: int = 0) -> None:
    """Take a frame's writes back to a mark, last first, for good."""
    frame.unwind(mark)


def _table_for(owner: nn.Module, name: str, value: Any) -> str:
    if isinstance(value, nn.Parameter) or (value is None and name in owner._parameters):
        return "_parameters"
    if isinstance(value, nn.Module) or (value is None and name in owner._modules):
        return "_modules"
    if name in owner._buffers and (value is None or isinstance(value, torch.Tensor)):
        return "_buffers"
    return "__dict__"


def _attributes(owner: Any) -> MutableMapping[str, Any]:
    if isinstance(owner, type | types.ModuleType):
        raise InvalidSetting(f"{owner.__name__} belongs to the whole process: only objects of one model are edited.")
    try:
        attributes: MutableMapping[str, Any] = vars(owner)
        return attributes
    except TypeError:
        raise InvalidSetting(
            f"{type(owner).__name__} keeps no attributes of its own, so an edit of it could not be taken back."
        ) from None


def _check_it_shows(owner: Any, name: str, value: Any) -> None:
    if getattr(owner, name, ABSENT) is not value:
        raise InvalidSetting(
            f"{name!r} of {type(owner).__name__} is computed or goes by another name inside it: "
            "set what stands behind it."
        )
