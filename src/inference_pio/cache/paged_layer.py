"""One layer of the cache as the library knows it: it hands out views of a store that holds every token."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers import DynamicLayer

from inference_pio.cache.sidecar import KeySidecar
from inference_pio.cache.span import Span
from inference_pio.cache.store import Kind, Store, bucket, whole_pages
from inference_pio.errors import InvalidSetting


class PagedLayer(DynamicLayer):
    """Keys and values of one layer with full attention, in a `store` made at the first update.

    `capacity` tokens are held from the start, more as they come; `sidecars` keeps a summary of each page of keys.
    """

    def __init__(self, span: Span, capacity: int = 0, sidecars: bool = False) -> None:
        super().__init__()
        self.span, self.reserved, self.wants_sidecar = span, capacity, sidecars
        self.length = 0
        self.store: Store | None = None
        self._views: tuple[torch.Tensor, torch.Tensor] | None = None
        self.sidecar: KeySidecar | None = None

    @property
    def keys(self) -> torch.Tensor | None:
        """The tokens that are held, as the library has them; made when they are asked for, and the same object until
        something changes: a call sets the length of every layer several times."""
        return self._held()[0] if self.store else None

    @keys.setter
    def keys(self, given: None) -> None:
        self._is_not_given(given)

    @property
    def values(self) -> torch.Tensor | None:
        """The same of values."""
        return self._held()[1] if self.store else None

    @values.setter
    def values(self, given: None) -> None:
        self._is_not_given(given)

    def _held(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._views is None:
            assert self.store is not None
            self._views = self.store.views(self.length)
        return self._views

    @staticmethod
    def _is_not_given(states: None) -> None:
        if states is not None:  # the library's layers begin with none
            raise InvalidSetting("a PagedLayer holds what update() brings: its keys and values are not set.")

    @property
    def capacity(self) -> int:
        return self.store.capacity if self.store else 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        capacity = whole_pages(self.reserved) or bucket(key_states.shape[2])
        self.store, self._views = Store(Kind.of(key_states, value_states), capacity), None
        self.dtype, self.device = key_states.dtype, key_states.device
        self.span.place(self.device)
        self.sidecar = KeySidecar(self.store, self.span) if self.wants_sidecar else None
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens behind the others and hand out all of them."""
        store = self._store_for(key_states, value_states)
        before, after = self.length, self.length + key_states.shape[2]
        if after > store.capacity:
            self.reserve(bucket(after))
        store.write(key_states, value_states, before)
        self._reach(after)
        return self._held()

    def reserve(self, tokens: int) -> None:
        """Hold at least so many tokens from now on: until there are more, no address changes."""
        self.reserved = max(self.reserved, tokens)
        if self.store and tokens > self.store.capacity:
            self.store.grow(whole_pages(tokens), self.length)
            self._views = None
            if self.sidecar:
                self.sidecar.grow(self.store)

    def hold(self, tokens: int) -> None:
        """Know of the first `tokens` of the store, which others have written."""
        if self.store:
            self._reach(tokens)

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, told as a negative number; their room stays."""
        if tokens_to_remove > 0:
            raise InvalidSetting(
                f"crop({tokens_to_remove}): a negative number of tokens is removed from the end; to keep the first "
                f"{tokens_to_remove}, crop({tokens_to_remove} - cache.get_seq_length())."
            )
        if self.store:
            self._reach(max(0, self.length + tokens_to_remove))

    def reset(self) -> None:
        """Forget all tokens; their room stays, and serves the next ones if they are of the same kind."""
        if self.store:
            self._reach(0)

    def select(self, rows: torch.Tensor) -> None:
        """Take these rows of the batch, in this order."""
        if self.store:
            rows = rows.to(self.device)
            self.store.select(rows, self.length)
            self._views = None
            if self.sidecar:
                self.sidecar.select(rows)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.store:
            self.select(torch.arange(self.store.kind.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.store:
            self.select(torch.arange(self.store.kind.batch, device=self.device)[indices])

    def offload(self) -> NoReturn:
        raise InvalidSetting(
            "a PagedLayer does not leave its device: DynamicCache(offloading=True) is the library's cache that does."
        )

    def prefetch(self) -> None:
        """Nothing has left the device."""

    def _store_for(self, keys: torch.Tensor, values: torch.Tensor) -> Store:
        """The store that these states belong to; an empty one of another kind makes way."""
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise InvalidSetting(
                "a PagedCache writes in place and keeps no graph for a backward pass: call the model under "
                "torch.no_grad() or torch.inference_mode(), or give it a DynamicCache."
            )
        kind, starts = Kind.of(keys, values), self.span.starts
        if starts is not None and len(starts) != kind.batch:
            raise InvalidSetting(
                f"the cache was given the padding of {len(starts)} rows, and {kind.batch} arrive. With beams, repeat "
                "each row of the mask as often as there are beams."
            )
        if self.store is None or (self.length == 0 and self.store.kind != kind):
            self.lazy_initialization(keys, values)
        assert self.store is not None
        if self.store.kind != kind:
            raise InvalidSetting(f"the cache holds {self.length} tokens of {self.store.kind}, and {kind} arrives.")
        return self.store

    def _reach(self, tokens: int) -> None:
        """Let the length be `tokens`, on the host, on the device and in the sidecar."""
        assert self.store is not None
        before, self.length, self._views = self.length, tokens, None
        self.span.reach(tokens)
        if self.sidecar:
            self.sidecar.follow(self.store, before, tokens, self.span)
