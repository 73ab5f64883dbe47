"""Where one layer's keys and values lie: one allocation each, token-major, grown in buckets of whole pages."""

from __future__ import annotations

from typing import NamedTuple

import torch

from inference_pio.kernels.triton.launch import PAGE

FIRST_BUCKET = 4 * PAGE


def bucket(tokens: int) -> int:
    """The capacity that a store for so many tokens gets: a power of two, so that growing is paid once per doubling.

    >>> bucket(1), bucket(256), bucket(257)
    (256, 256, 512)
    """
    return max(FIRST_BUCKET, 1 << (tokens - 1).bit_length())


def whole_pages(tokens: int) -> int:
    """So many tokens, up to the end of their last page.

    >>> whole_pages(64), whole_pages(65)
    (64, 128)
    """
    return -(-tokens // PAGE) * PAGE


class Kind(NamedTuple):
    """What the keys and values of a layer are like, whatever their number of tokens."""

    batch: int
    key_heads: int
    key_width: int
    value_heads: int
    value_width: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> Kind:
        (batch, heads, _, width), (_, value_heads, _, value_width) = keys.shape, values.shape
        return cls(batch, heads, width, value_heads, value_width, keys.dtype, keys.device)

    @property
    def is_latent(self) -> bool:
        """One head of one width beside one head of another: the latent of MLA and its rotated part."""
        return self.key_heads == self.value_heads == 1 and self.key_width != self.value_width


class Store:
    """Keys and values `[batch, capacity, heads, width]` of one layer; a latent lies beside its rotated part in one.

    >>> store = Store(Kind(1, 1, 512, 1, 64, torch.bfloat16, torch.device("cpu")), 256)
    >>> [tuple(tensor.shape) for tensor in (*store.tensors, store.keys, store.values)]
    [(1, 256, 1, 576), (1, 256, 1, 512), (1, 256, 1, 64)]
    """

    def __init__(self, kind: Kind, capacity: int) -> None:
        self.kind = kind
        shapes = [(kind.key_heads, kind.key_width), (kind.value_heads, kind.value_width)]
        if kind.is_latent:
            shapes = [(1, kind.key_width + kind.value_width)]
        self.tensors = tuple(self._allocate(capacity, *shape) for shape in shapes)

    @property
    def capacity(self) -> int:
        return self.tensors[0].shape[1]

    @property
    def keys(self) -> torch.Tensor:
        return self.tensors[0][..., : self.kind.key_width]

    @property
    def values(self) -> torch.Tensor:
        return self.tensors[-1][..., -self.kind.value_width :]

    @property
    def scored(self) -> torch.Tensor:
        """What a query is multiplied with: the keys, or whole rows of a latent."""
        return self.tensors[0]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(self, keys: torch.Tensor, values: torch.Tensor, at: int) -> None:
        """Put `[batch, heads, tokens, width]` behind the first `at` tokens; there must be room."""
        tokens = slice(at, at + keys.shape[2])
        self.keys[:, tokens].copy_(keys.transpose(1, 2))
        self.values[:, tokens].copy_(values.transpose(1, 2))

    def views(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `length` tokens as the library has them, `[batch, heads, length, width]`; nothing is copied."""
        return self.keys[:, :length].transpose(1, 2), self.values[:, :length].transpose(1, 2)

    def grow(self, capacity: int, length: int) -> None:
        """Move the first `length` tokens into larger allocations."""
        grown = tuple(self._allocate(capacity, *tensor.shape[2:]) for tensor in self.tensors)
        for fresh, tensor in zip(grown, self.tensors, strict=True):
            fresh[:, :length].copy_(tensor[:, :length])
        self.tensors = grown

    def select(self, rows: torch.Tensor, length: int) -> None:
        """Take these rows of the batch, in this order; as many as there were stay where they are."""
        found = [tensor[:, :length].index_select(0, rows) for tensor in self.tensors]
        if len(rows) != self.kind.batch:
            self.kind = self.kind._replace(batch=len(rows))
            self.tensors = tuple(self._allocate(self.capacity, *tensor.shape[2:]) for tensor in self.tensors)
        for tensor, taken in zip(self.tensors, found, strict=True):
            tensor[:, :length].copy_(taken)

    @torch.inference_mode(False)  # a store made in inference mode could not be written outside of it
    def _allocate(self, capacity: int, heads: int, width: int) -> torch.Tensor:
        """Zeros, since a masked NaN behind the length would still spoil what attends over a whole bucket."""
        shape = (self.kind.batch, capacity, heads, width)
        return torch.zeros(shape, dtype=self.kind.dtype, device=self.kind.device)
