"""One layer of the cache in a format: pages as codes, the last tokens as they are, all of it handed out as numbers."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import DynamicLayer

from inference_pio.cache.coded_pages import CodedPages
from inference_pio.cache.kv_format import forms_of
from inference_pio.cache.store import Kind
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import PAGE

RECENT = PAGE
"""At least so many of the last tokens stay as they are; a page is coded once it lies wholly before them."""


class CodedLayer(DynamicLayer):
    """Keys and values of one layer with full attention, coded page by page as they grow old.

    What was coded is never coded again: a crop into a page leaves it short, and what comes then begins a page of its
    own. Tokens of one call see one another as they are, whatever is coded behind it.
    """

    def __init__(self, kv_format: str) -> None:
        super().__init__()
        self.kv_format = kv_format
        self.kind: Kind | None = None
        self.pages: tuple[CodedPages, ...] = ()
        self.recent: tuple[Tensor, ...] = ()
        self.fills: list[int] = []

    @property
    def coded(self) -> int:
        """Tokens that are held as codes."""
        return sum(self.fills)

    @property
    def nbytes(self) -> int:
        """All bytes that the layer holds, used or not."""
        return sum(side.nbytes for side in self.pages) + self.recent_nbytes

    @property
    def recent_nbytes(self) -> int:
        """Those of them that are tokens as they are."""
        return sum(states.nbytes for states in self.recent)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.kind = Kind.of(key_states, value_states)
        self.pages = tuple(CodedPages(form) for form in forms_of(self.kv_format, self.kind))
        self.recent = tuple(states[:, :, :0].clone() for states in (key_states, value_states))
        self.fills = []
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the new tokens behind the others and hand out all of them, those of pages as their codes tell them."""
        self._check(key_states, value_states)
        keys, values = (self._handed_out(side, states) for side, states in enumerate((key_states, value_states)))
        new = self.get_seq_length() + key_states.shape[2] - self.coded
        self.recent = tuple(states[:, :, states.shape[2] - new :] for states in (keys, values))
        self._code_old_pages()
        return keys, values

    def get_seq_length(self) -> int:
        return self.coded + (self.recent[0].shape[2] if self.recent else 0)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, told as a negative number."""
        if tokens_to_remove > 0:
            raise InvalidSetting(
                f"crop({tokens_to_remove}): a negative number of tokens is removed from the end; to keep the first "
                f"{tokens_to_remove}, crop({tokens_to_remove} - cache.get_seq_length())."
            )
        if not self.is_initialized or tokens_to_remove == 0:
            return
        recent = self.recent[0].shape[2]
        kept = max(0, recent + tokens_to_remove)
        self.recent = tuple(states[:, :, :kept].clone() for states in self.recent)
        self._shorten(-tokens_to_remove - (recent - kept))

    def reset(self) -> None:
        """Forget all tokens, their room too."""
        self.kind, self.pages, self.recent, self.fills = None, (), (), []
        self.is_initialized = False

    def select(self, rows: Tensor) -> None:
        """Take these rows of the batch, in this order."""
        if self.kind is None:
            return
        rows = rows.to(self.device)
        self.kind = self.kind._replace(batch=len(rows))
        self.recent = tuple(states.index_select(0, rows) for states in self.recent)
        for side in self.pages:
            side.select(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.kind is not None:
            self.select(torch.arange(self.kind.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.kind is not None:
            self.select(torch.arange(self.kind.batch, device=self.device)[indices])

    def offload(self) -> NoReturn:
        raise InvalidSetting(
            "a CodedLayer does not leave its device: DynamicCache(offloading=True) is the library's cache that does."
        )

    def prefetch(self) -> None:
        """Nothing has left the device."""

    def _check(self, keys: Tensor, values: Tensor) -> None:
        """Whether these states belong here; an empty layer takes any."""
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise InvalidSetting(
                "a cache in a format keeps no graph for a backward pass: call the model under torch.no_grad() or "
                "torch.inference_mode(), or give it a DynamicCache."
            )
        kind = Kind.of(keys, values)
        if self.kind is None or (self.kind != kind and not self.get_seq_length()):
            self.lazy_initialization(keys, values)
        if self.kind != kind:
            raise InvalidSetting(
                f"the cache holds {self.get_seq_length()} tokens of {self.kind}, and {kind} arrives: reset() it first."
            )

    def _handed_out(self, side: int, new: Tensor) -> Tensor:
        """All tokens of one side, with the new ones behind; nothing is copied where there are no others."""
        recent, held = self.recent[side], self.get_seq_length()
        if not held:
            return new
        out = new.new_empty(*new.shape[:2], held + new.shape[2], new.shape[3])
        at = 0
        for first, tokens in self._runs():
            self.pages[side].read(out[:, :, at : at + tokens], first, tokens)
            at += tokens
        out[:, :, at:held].copy_(recent)
        out[:, :, held:].copy_(new)
        return out

    def _runs(self) -> list[tuple[int, int]]:
        """Where pages are read in one go: the first page, and the tokens; only the last page of a run may be short."""
        runs: list[tuple[int, int]] = []
        begin = 0
        for number, fill in enumerate(self.fills):
            if fill < PAGE or number == len(self.fills) - 1:
                runs.append((begin, sum(self.fills[begin : number + 1])))
                begin = number + 1
        return runs

    def _code_old_pages(self) -> None:
        """Code what lies before the last tokens; what stays is copied, so that nothing keeps the whole of it alive."""
        count = max(0, self.recent[0].shape[2] - RECENT) // PAGE
        if count:
            for side, states in zip(self.pages, self.recent, strict=True):
                side.append(states[:, :, : count * PAGE])
            self.fills += [PAGE] * count
        self.recent = tuple(states[:, :, count * PAGE :].clone() for states in self.recent)

    def _shorten(self, tokens: int) -> None:
        """Forget the last tokens of the pages."""
        while tokens > 0 and self.fills:
            left = self.fills.pop() - tokens
            tokens = max(0, -left)
            if left > 0:
                self.fills.append(left)
        for side in self.pages:
            side.count = len(self.fills)
