"""Writes that change where a tensor's bytes live, while the tensor object and its ties stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from inference_pio.errors import VaultError
from inference_pio.undo.awaited import unmark
from inference_pio.undo.checkpoint import same_bits
from inference_pio.undo.parked import Parked, View
from inference_pio.undo.slots import Slot


def point(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """Let a tensor object show other data; whoever holds the object sees the change, and it waits for nothing more."""
    unmark(tensor)
    tensor.data = data


@dataclass(eq=False)
class Park:
    """The bytes under a few tensors leave memory; the tensors stay, empty, until undo.

    `under` are the earlier writes that moved these tensors: they must not keep the bytes either.
    """

    slot: Slot
    tensors: list[torch.Tensor]
    parked: Parked
    under: Sequence[Rehouse | None] = ()
    fetched: list[torch.Tensor] | None = None

    def __post_init__(self) -> None:
        self.under = self.under or [None] * len(self.tensors)
        self._stood: list[torch.Tensor | None] = [None] * len(self.tensors)

    @property
    def held_bytes(self) -> int:
        return self.parked.held_bytes

    @property
    def nbytes(self) -> int:
        return max(self.parked.nbytes, 0)

    def redo(self) -> None:
        self.fetched = None
        for place, (tensor, under) in enumerate(zip(self.tensors, self.under, strict=True)):
            stood = self._stood[place]
            point(tensor, View.of(tensor).empty() if stood is None else stood)
            self._stood[place] = None
            if under is not None:
                under.cover(tensor)

    def prepare(self) -> None:
        """Fetch and verify before anything is written."""
        if self.fetched is None:
            self.fetched = self.parked.fetch()

    def release(self) -> None:
        """Let go of what `prepare` has fetched."""
        self.fetched = None

    def was_moved(self) -> bool:
        """Whether somebody else has given one of these tensors new data."""
        return any(tensor.numel() for tensor in self.tensors)

    def undo(self) -> None:
        self.prepare()
        for place, (tensor, data) in enumerate(zip(self.tensors, self.fetched or [], strict=True)):
            if self._stood[place] is None:
                self._stood[place] = tensor.detach()
            point(tensor, data)
            if (under := self.under[place]) is not None:
                under.uncover(tensor)


@dataclass(eq=False)
class PutAway(Park):
    """The bytes under a few tensors leave memory, and the tensors still look as they did: only their numbers are gone.

    Whoever reads one meets not-a-numbers, not other bytes. Its owner shows the true ones while they are needed, and
    `rest` makes it stop: then each tensor shows its stand-in again. `others` are the slots of all but the first tensor.
    """

    rest: Callable[[], None] = lambda: None
    others: tuple[Slot, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stand_ins = [stand_in_for(tensor) for tensor in self.tensors]

    def redo(self) -> None:
        self.fetched = None
        for place, (tensor, under) in enumerate(zip(self.tensors, self.under, strict=True)):
            stood = self._stood[place]
            point(tensor, self.stand_ins[place] if stood is None else stood)
            self._stood[place] = None
            if under is not None:
                under.cover(tensor)

    def undo(self) -> None:
        self.rest()
        super().undo()

    def was_moved(self) -> bool:
        self.rest()
        return any(_address(one) != _address(other) for one, other in zip(self.tensors, self.stand_ins, strict=True))


def stand_in_for(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same look that costs one number: not-a-number, or the largest one where there is none such."""
    return View.of(tensor).stand_in()


@dataclass(eq=False)
class Rehouse:
    """A storage's bytes move into other homes (another device, a view of a merged tensor) unchanged.

    `slot` names the first tensor, `others` those that share its storage and move with it.
    A home is let go (None) while a later write has the tensor, or it would keep memory that write wants to free.
    """

    slot: Slot
    tensors: list[torch.Tensor]
    homes: list[torch.Tensor | None]
    under: Sequence[Rehouse | None] = ()
    others: tuple[Slot, ...] = ()
    views: list[View] = field(default_factory=list)
    rebuilt: list[torch.Tensor] | None = None

    def __post_init__(self) -> None:
        self.under = self.under or [None] * len(self.tensors)
        self.views = [View.of(tensor) for tensor in self.tensors]
        self._stood: list[torch.Tensor | None] = [None] * len(self.tensors)
        for tensor, home in zip(self.tensors, self.homes, strict=True):
            if home is None or not _holds_the_same(tensor, home):
                raise VaultError(f"rehousing {self.slot} would change its bytes: the new home holds other values.")
        self.homes = [home.detach() for home in self.homes if home is not None]

    def redo(self) -> None:
        self.rebuilt = None
        for place, (tensor, under) in enumerate(zip(self.tensors, self.under, strict=True)):
            stood = self._stood[place]
            data = self.homes[place] if stood is None else stood
            if data is not None:
                point(tensor, data)
            self._stood[place] = None
            if under is not None:
                under.cover(tensor)

    def prepare(self) -> None:
        """Allocate the old homes, before anything is rebound."""
        if self.rebuilt is None:
            nbytes = max(view.end_bytes for view in self.views)
            flat = torch.empty(nbytes, dtype=torch.uint8, device=self.views[0].device)
            self.rebuilt = [view.on(flat.untyped_storage()) for view in self.views]

    def release(self) -> None:
        """Let go of what `prepare` has allocated."""
        self.rebuilt = None

    def undo(self) -> None:
        self.prepare()
        for place, (tensor, old) in enumerate(zip(self.tensors, self.rebuilt or [], strict=True)):
            if self._stood[place] is None:
                self._stood[place] = tensor.detach()
            home, stood = self.homes[place], self._stood[place]
            source = stood if home is None else home
            if source is not None:
                _copy(old, source)
            point(tensor, old)
            if (under := self.under[place]) is not None:
                under.uncover(tensor)

    def was_moved(self) -> bool:
        """Whether somebody else has given one of these tensors new data."""
        return any(
            home is not None and _address(tensor) != _address(home)
            for tensor, home in zip(self.tensors, self.homes, strict=True)
        )

    def cover(self, tensor: torch.Tensor) -> None:
        """A later write has moved a tensor on: its home here is no longer needed."""
        self._set_home(tensor, None)

    def uncover(self, tensor: torch.Tensor) -> None:
        """A later write was taken back: where the tensor is now is its home here."""
        self._set_home(tensor, tensor.detach())

    def _set_home(self, tensor: torch.Tensor, home: torch.Tensor | None) -> None:
        for place, known in enumerate(self.tensors):
            if known is tensor:
                self.homes[place] = home


def _holds_the_same(tensor: torch.Tensor, home: torch.Tensor) -> bool:
    if tensor.dtype != home.dtype or tensor.shape != home.shape:
        return False
    if tensor.is_meta:
        return True
    if home.is_meta:
        return False
    if tensor.device == home.device:
        return same_bits(tensor.detach(), home.detach())
    return same_bits(tensor.detach().cpu(), home.detach().cpu())


def _address(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _copy(old: torch.Tensor, source: torch.Tensor) -> None:
    """Copy values into a view; the repeats of an expanded one cannot be written, so each is written once."""
    for dim, (size, stride) in enumerate(zip(old.shape, old.stride(), strict=True)):
        if stride == 0 and size > 1:
            old, source = old.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    old.copy_(source)
