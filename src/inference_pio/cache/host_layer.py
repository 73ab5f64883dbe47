"""One layer of the cache on the host: appended there, brought into a buffer on the device for each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicLayer

from inference_pio.cache.host_slab import HostSlab, room_for
from inference_pio.cache.staging import Staging
from inference_pio.cache.store import Kind
from inference_pio.errors import InvalidSetting


class HostLayer(DynamicLayer):
    """Keys and values of one layer with full attention; a token's lie side by side, a latent's as they are.

    What `update` hands out lies in a buffer that is free for others once the next layer updates: read it before.
    """

    def __init__(self, staging: Staging, number: int, rooms: dict[int, HostSlab] | None = None) -> None:
        super().__init__()
        self.staging, self.number = staging, number
        self.rooms = {} if rooms is None else rooms
        self.kind: Kind | None = None
        self.reserved = self.turn = 0
        self.place = staging.enter(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> HostLayer:
        other = memo[id(self)] = HostLayer.__new__(HostLayer)
        for name, value in vars(self).items():
            if name not in ("staging", "rooms"):
                setattr(other, name, value.__deepcopy__(memo) if isinstance(value, HostSlab) else value)
        staging = memo.get(id(self.staging))
        if staging is None:
            staging = memo[id(self.staging)] = Staging(self.staging.ahead)
        other.staging, other.rooms, other.place = staging, {}, staging.enter(other)
        if other.kind is not None:
            other.slab.lane = staging.lane(other.kind.device)
        return other

    @property
    def length(self) -> int:
        return self.slab.length if self.kind is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes on the host, used or not."""
        return self.slab.nbytes if self.kind is not None else 0

    def elements(self, tokens: int) -> int:
        """Numbers of so many tokens."""
        return tokens * self.slab.rows.shape[1] * self.slab.rows.shape[2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        kind = self.kind = Kind.of(key_states, value_states)
        width = kind.key_heads * kind.key_width + kind.value_heads * kind.value_width
        lane, pinned = self.staging.lane(kind.device), kind.device.type == "cuda"
        room = self.rooms.pop(self.number, None)
        if room is None or not room.takes(kind.batch, width, kind.dtype, pinned):
            room = HostSlab(kind.batch, width, kind.dtype, lane, pinned=pinned)
        self.slab = self.rooms[self.number] = room
        self.slab.begin(lane)
        self.slab.reserve(room_for(max(self.reserved, key_states.shape[2])))
        self.dtype, self.device, self.turn = kind.dtype, kind.device, self.turn + 1
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the new tokens behind the others and hand out all of them."""
        self._check(key_states, value_states)
        before, after = self.length, self.length + key_states.shape[2]
        buffer = self.staging.open(self, after, key_states)
        keys, values = self._views(buffer)
        keys[:, :, before:].copy_(key_states)
        values[:, :, before:].copy_(value_states)
        self.staging.close(self, buffer[before:])
        return (keys, values) if before else (key_states, value_states)

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens on the host."""
        self.reserved = max(self.reserved, tokens)
        if self.kind is not None:
            self.slab.reserve(room_for(tokens) if tokens > len(self.slab.rows) else 0)

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, told as a negative number; their room stays."""
        if tokens_to_remove > 0:
            raise InvalidSetting(
                f"crop({tokens_to_remove}): a negative number of tokens is removed from the end; to keep the first "
                f"{tokens_to_remove}, crop({tokens_to_remove} - cache.get_seq_length())."
            )
        if self.kind is not None:
            self.slab.length = max(0, self.length + tokens_to_remove)

    def reset(self) -> None:
        """Forget all tokens; their room stays, and serves the next ones if they are of the same kind."""
        if self.kind is not None:
            self.slab.length, self.turn = 0, self.turn + 1

    def select(self, rows: Tensor) -> None:
        """Take these rows of the batch, in this order."""
        if self.kind is not None:
            self.slab.select(rows)
            self.kind, self.turn = self.kind._replace(batch=len(rows)), self.turn + 1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.kind is not None:
            self.select(torch.arange(self.kind.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.kind is not None:
            self.select(torch.arange(self.kind.batch)[indices.cpu()])

    def offload(self) -> None:
        """It lies on the host already."""

    def prefetch(self) -> None:
        """The layer before has sent for it."""

    def _check(self, keys: Tensor, values: Tensor) -> None:
        """Whether these states belong here; an empty layer takes any."""
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise InvalidSetting(
                "a cache on the host keeps no graph for a backward pass: call the model under torch.no_grad() or "
                "torch.inference_mode(), or give it a DynamicCache."
            )
        kind = Kind.of(keys, values)
        if self.kind is None or (self.kind != kind and not self.length):
            self.lazy_initialization(keys, values)
        if self.kind != kind:
            raise InvalidSetting(
                f"the cache holds {self.length} tokens of {self.kind}, and {kind} arrives: reset() it."
            )

    def _views(self, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [batch, heads, tokens, width] in a buffer [tokens, batch, both]."""
        kind = self.kind
        assert kind is not None
        sizes = (kind.key_heads, kind.key_width), (kind.value_heads, kind.value_width)
        at = kind.key_heads * kind.key_width
        keys, values = (
            part.view(*part.shape[:2], *size).permute(1, 2, 0, 3)
            for part, size in zip((buffer[..., :at], buffer[..., at:]), sizes, strict=True)
        )
        return keys, values
