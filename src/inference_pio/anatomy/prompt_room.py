"""Room for a prompt of known length in the library's cache: each token is written once, where it would copy all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from inference_pio.anatomy.first_tokens import is_plain, own_memory

UPDATE, NAMES = "update", ("keys", "values")


class PromptRoom:
    """Keys and values of one layer while a prompt comes in pieces, with a place for every token of it.

    The library joins those that it has with each piece by `torch.cat`: of a prompt in n pieces n / 2 copies, and slow
    ones (0.6 TB/s on an H100, since new values lie token by token). On a GPU tokens lie one behind the other here, too,
    and are moved once at the end: so no stride tells how many come, and what cuDNN prepares for a shape serves prompts
    of any length. A CPU prepares nothing, and reads a head's keys faster where they lie together, as the library's do.

    >>> from transformers import DynamicLayer
    >>> layer = DynamicLayer()
    >>> room = PromptRoom(layer, 5)
    >>> [tuple(layer.update(torch.ones(1, 2, n, 4), torch.ones(1, 2, n, 4))[0].shape) for n in (3, 2)]
    [(1, 2, 3, 4), (1, 2, 5, 4)]
    >>> room.leave()
    >>> layer.keys.is_contiguous(), "update" in vars(layer)
    (True, False)
    """

    def __init__(self, layer: Any, tokens: int) -> None:
        self.layer, self.tokens = layer, tokens
        self.rooms: dict[str, Tensor] = {}
        self.handed: dict[str, Tensor] = {}
        vars(layer)[UPDATE] = self.update

    def update(self, keys: Tensor, values: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Keep the new tokens behind the others and hand out all of them, as the layer's own does."""
        layer, before = self.layer, self.layer.get_seq_length()
        if not self._takes(keys, values, before):
            self.leave()
            return layer.update(keys, values, *given, **named)  # type: ignore[no-any-return]
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        for name, new in zip(NAMES, (keys, values), strict=True):
            if name not in self.rooms:
                self._move_in(name, new, before)
            self.rooms[name][:, :, before : before + new.shape[2]].copy_(new)
        for name in NAMES:
            self._hand(name, before + keys.shape[2])
        return layer.keys, layer.values

    def leave(self) -> None:
        """Give the layer tensors of its own, as the library's are, one after the other; its update is its own again."""
        vars(self.layer).pop(UPDATE, None)
        mine = [name for name, ours in self.handed.items() if getattr(self.layer, name) is ours]
        self.handed.clear()
        for name in mine:
            setattr(self.layer, name, _as_the_librarys(getattr(self.layer, name), self.rooms.pop(name)))

    def _takes(self, keys: Tensor, values: Tensor, before: int) -> bool:
        """Whether tokens come as those before them did, few enough, and nobody has changed what the layer holds."""
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            return False
        if keys.dim() != 4 or keys.shape[::2] != values.shape[::2] or before + keys.shape[2] > self.tokens:
            return False
        if any(getattr(self.layer, name) is not ours for name, ours in self.handed.items()):
            return False
        held = (self.layer.keys, self.layer.values) if before else (keys, values)
        return all(_kind(old) == _kind(new) for old, new in zip(held, (keys, values), strict=True))

    def _move_in(self, name: str, new: Tensor, before: int) -> None:
        room = self.rooms[name] = _room_like(new, self.tokens)
        if before:
            room[:, :, :before].copy_(getattr(self.layer, name))
            self._hand(name, before)  # what it held before makes room

    def _hand(self, name: str, tokens: int) -> None:
        view = self.handed[name] = self.rooms[name][:, :, :tokens]
        setattr(self.layer, name, view)


class PromptRooms:
    """The rooms of a cache's layers, as far as they are plain ones of the library's."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.rooms = tokens, dict[int, PromptRoom]()

    def open(self, cache: Any) -> None:
        """Give each layer its room that has none; before each piece, since the library makes layers as they come."""
        if type(cache) is not DynamicCache:
            return
        for number, layer in enumerate(cache.layers):
            if number not in self.rooms and is_plain(cache, layer):
                self.rooms[number] = PromptRoom(layer, self.tokens)

    def leave(self) -> None:
        """All of them, whatever is raised at one: an update that stayed would hold its room as long as the layer."""
        with ExitStack() as leaving:
            for room in self.rooms.values():
                leaving.callback(_leave, room)


@contextmanager
def prompt_rooms(tokens: int) -> Iterator[PromptRooms]:
    """Rooms for a prompt that ends with so many tokens in the cache; layers keep tensors of their own afterwards."""
    rooms = PromptRooms(tokens)
    try:
        yield rooms
    finally:
        rooms.leave()


def _leave(room: PromptRoom) -> None:
    with suppress(torch.OutOfMemoryError):  # then a layer keeps its room, with the same tokens in it
        room.leave()


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape[:2], tensor.shape[3], tensor.dtype, tensor.device


def by_tokens(device: torch.device) -> bool:
    """Whether rooms lie token by token there, and not head by head.

    >>> by_tokens(torch.device("cpu")), by_tokens(torch.device("cuda"))
    (False, True)
    """
    return device.type == "cuda"


def _room_like(new: Tensor, tokens: int) -> Tensor:
    batch, heads, _, width = new.shape
    if by_tokens(new.device):
        return new.new_empty(tokens, batch, heads, width).permute(1, 2, 0, 3)
    return new.new_empty(batch, heads, tokens, width)


def _as_the_librarys(held: Tensor, room: Tensor) -> Tensor:
    """A contiguous tensor of its own memory: the room itself where all of it lies as it should."""
    if held.shape == room.shape and room.is_contiguous():
        return room.flatten().view(room.shape)  # a single row or head may have any stride until now
    return own_memory(held.contiguous())
