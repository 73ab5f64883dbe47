"""Buffers on the device, in which the layers of a cache on the host come by turns: one is read, others are filled."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from inference_pio.cache.host_slab import room_for
from inference_pio.cache.lane import Lane, lane_of

if TYPE_CHECKING:
    from inference_pio.cache.host_layer import HostLayer

AHEAD = 2
"""While one layer computes, one is coming and one is asked for: with a single one the link rests until each layer has
got as far as its keys, and while a token is chosen and the next one begun."""


class Held(NamedTuple):
    """What a buffer holds: so many tokens of a layer, as they were at a turn of its batch."""

    layer: int
    turn: int
    tokens: int


class Staging:
    """Shared by all layers of a cache, which enter themselves in the order in which they are called. It holds none of
    them: what a cache held is free as soon as nobody holds the cache.

    `ahead` layers are on their way while one is read, behind the last the first ones again. A layer's buffer is free as
    soon as the next layer asks for its own: what read it has been given to the device by then.
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        self.ahead = ahead
        self._layers: list[weakref.ref[HostLayer]] = []
        self.brought = self.early = self.turn = 0
        self._lane: Lane | None = None
        self._device: torch.device | None = None
        self.buffers: list[Tensor] = []
        self.marks: list[Any] = []
        self.holds: list[Held | None] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Staging:
        other = memo[id(self)] = Staging(self.ahead)  # its layers enter themselves as they are copied
        return other

    def enter(self, layer: HostLayer) -> int:
        """Take a layer behind the others; its place among them."""
        self._layers.append(weakref.ref(layer))
        return len(self._layers) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def lane(self, device: torch.device) -> Lane:
        """The lane of this cache; one for all layers, so that what a layer sends is there when it is brought back."""
        if self._lane is None or self._device != device:
            self._lane, self._device = lane_of(device), device
        return self._lane

    def open(self, layer: HostLayer, tokens: int, like: Tensor) -> Tensor:
        """A buffer [tokens, batch, width] that begins with all that a layer holds; it may be written from here on."""
        lane, wanted = self.lane(like.device), _of(layer)
        self._reserve(layer, tokens, like)
        found = self._with(wanted)
        if found is None:
            found = self._free({self.turn})
            lane.begin()
            self._bring(layer, found)
        else:
            self.early += layer.length > 0
        self.turn = found
        if self.marks[found] is not None:
            lane.wait(self.marks[found])
        for one, held in enumerate(self.holds):
            if held is not None and held.layer == layer.place:
                self.holds[one] = None
        return self._view(layer, found, tokens)

    def close(self, layer: HostLayer, new: Tensor) -> None:
        """Send a layer's new tokens, which lie in the open buffer, to the host, and bring the layers that come next."""
        lane = self.lane(new.device)
        lane.begin()
        layer.slab.append(new)
        self.marks[self.turn] = lane.mark()
        after = [(one, self._with(_of(one))) for one in self._next(layer)]
        taken = {self.turn, *(held for _, held in after if held is not None)}
        for one, held in after:
            if held is None:
                free = self._free(taken)
                self._bring(one, free)
                taken.add(free)

    def forget(self) -> None:
        """Give the buffers back."""
        self.buffers, self.marks, self.holds, self.turn = [], [], [], 0

    @property
    def capacity(self) -> int:
        return self.buffers[0].numel() if self.buffers else 0

    def _next(self, layer: HostLayer) -> list[HostLayer]:
        """The layers behind one that a buffer can take; from the last on, those of the next token."""
        found = []
        for step in range(1, len(self.buffers)):
            after = self._layers[(layer.place + step) % len(self._layers)]()
            if (
                after is None
                or not after.length
                or after.dtype != layer.dtype
                or after.elements(after.length) > self.capacity
            ):
                break
            found.append(after)
        return found

    def _with(self, wanted: Held) -> int | None:
        """The buffer that holds all tokens of a layer, if one does."""
        for one, held in enumerate(self.holds):
            if held is not None and held[:2] == wanted[:2] and held.tokens >= wanted.tokens:
                return one
        return None

    def _free(self, taken: set[int]) -> int:
        """A buffer that is not taken; an empty one before one whose layer was brought in vain."""
        left = [one for one in range(len(self.buffers)) if one not in taken]
        return min(left, key=lambda one: self.holds[one] is not None)

    def _bring(self, layer: HostLayer, one: int) -> None:
        """Send for all that a layer holds."""
        lane = self._lane
        assert lane is not None
        if layer.length:
            lane.send(self._view(layer, one, layer.length), layer.slab.rows[: layer.length])
            self.marks[one] = lane.mark()
            self.brought += layer.elements(layer.length) * layer.slab.rows.itemsize
        self.holds[one] = _of(layer)

    def _view(self, layer: HostLayer, one: int, tokens: int) -> Tensor:
        return self.buffers[one][: layer.elements(tokens)].view(tokens, *layer.slab.rows.shape[1:])

    def _reserve(self, layer: HostLayer, tokens: int, like: Tensor) -> None:
        if self.buffers and (self.buffers[0].dtype, self.buffers[0].device) != (like.dtype, like.device):
            self.forget()
        if layer.elements(tokens) > self.capacity:
            self.forget()
            count = buffers_for(self.ahead, len(self._layers))
            self.buffers = [_allocate(layer.elements(room_for(tokens)), like) for _ in range(count)]
            self.marks, self.holds = [None] * count, [None] * count


def buffers_for(ahead: int, layers: int) -> int:
    """One that is read, and one for each layer ahead; more than there are layers would hold the same twice.

    >>> buffers_for(2, 24), buffers_for(2, 1), buffers_for(2, 0)
    (3, 2, 0)
    """
    return min(ahead, layers) + 1 if layers else 0


def _of(layer: HostLayer) -> Held:
    """What a buffer must hold to be of use to a layer as it is now."""
    return Held(layer.place, layer.turn, layer.length)


@torch.inference_mode(False)  # a buffer made in inference mode could not be written outside of it
def _allocate(elements: int, like: Tensor) -> Tensor:
    return torch.empty(elements, dtype=like.dtype, device=like.device)
