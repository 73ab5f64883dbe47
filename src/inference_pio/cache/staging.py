"""Two buffers on the device, in which the layers of a cache on the host come by turns: one is read, one is filled."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from inference_pio.cache.host_slab import room_for
from inference_pio.cache.lane import Lane, lane_of

if TYPE_CHECKING:
    from inference_pio.cache.host_layer import HostLayer


class Held(NamedTuple):
    """What a buffer holds: so many tokens of a layer, as they were at a turn of its batch."""

    layer: int
    turn: int
    tokens: int


class Staging:
    """Shared by all layers of a cache, which enter themselves in the order in which they are called. It holds none of
    them: what a cache held is free as soon as nobody holds the cache.

    A layer's buffer is free for the layer after the next: what read it has been given to the device by then.
    """

    def __init__(self) -> None:
        self._layers: list[weakref.ref[HostLayer]] = []
        self.brought = self.early = self.turn = 0
        self._lane: Lane | None = None
        self._device: torch.device | None = None
        self.buffers: list[Tensor] = []
        self.marks: list[Any] = [None, None]
        self.holds: list[Held | None] = [None, None]

    def __deepcopy__(self, memo: dict[int, Any]) -> Staging:
        other = memo[id(self)] = Staging()  # its layers enter themselves as they are copied
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
        lane, wanted = self.lane(like.device), Held(layer.place, layer.turn, layer.length)
        self._reserve(layer, tokens, like)
        self.turn = next((one for one in (0, 1) if self._has(one, wanted)), 1 - self.turn)
        if not self._has(self.turn, wanted):
            lane.begin()
            self._bring(layer, self.turn)
        else:
            self.early += layer.length > 0
        if self.marks[self.turn] is not None:
            lane.wait(self.marks[self.turn])
        self.holds[self.turn] = None
        return self._view(layer, self.turn, tokens)

    def close(self, layer: HostLayer, new: Tensor) -> None:
        """Send a layer's new tokens, which lie in the open buffer, to the host, and bring the next layer's."""
        lane = self.lane(new.device)
        lane.begin()
        layer.slab.append(new)
        self.marks[self.turn] = lane.mark()
        after = self._layers[(layer.place + 1) % len(self._layers)]()
        if (
            after is not None
            and after.length
            and after.elements(after.length) <= self.capacity
            and after.dtype == layer.dtype
        ):
            self._bring(after, 1 - self.turn)

    def forget(self) -> None:
        """Give the buffers back."""
        self.buffers, self.marks, self.holds = [], [None, None], [None, None]

    @property
    def capacity(self) -> int:
        return self.buffers[0].numel() if self.buffers else 0

    def _has(self, one: int, wanted: Held) -> bool:
        held = self.holds[one]
        return held is not None and held[:2] == wanted[:2] and held.tokens >= wanted.tokens

    def _bring(self, layer: HostLayer, one: int) -> None:
        """Send for all that a layer holds."""
        lane = self._lane
        assert lane is not None
        if layer.length:
            lane.send(self._view(layer, one, layer.length), layer.slab.rows[: layer.length])
            self.marks[one] = lane.mark()
            self.brought += layer.elements(layer.length) * layer.slab.rows.itemsize
        self.holds[one] = Held(layer.place, layer.turn, layer.length)

    def _view(self, layer: HostLayer, one: int, tokens: int) -> Tensor:
        return self.buffers[one][: layer.elements(tokens)].view(tokens, *layer.slab.rows.shape[1:])

    def _reserve(self, layer: HostLayer, tokens: int, like: Tensor) -> None:
        if self.buffers and (self.buffers[0].dtype, self.buffers[0].device) != (like.dtype, like.device):
            self.forget()
        if layer.elements(tokens) > self.capacity:
            self.forget()
            self.buffers = [_allocate(layer.elements(room_for(tokens)), like) for _ in range(2)]


@torch.inference_mode(False)  # a buffer made in inference mode could not be written outside of it
def _allocate(elements: int, like: Tensor) -> Tensor:
    return torch.empty(elements, dtype=like.dtype, device=like.device)
