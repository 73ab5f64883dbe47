"""An embedding that holds its table as codes with a scale a row: rows become weights as they are looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from inference_pio.errors import InvalidModel
from inference_pio.formats.compressed_linear import GROUP, CompressedLinear
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.kernels.row_lookup import row_lookup

LIKE = "like"
"""The buffer, without a number in it, whose dtype is that of the rows: `half()` and files carry it along."""


class CompressedEmbedding(CompressedModule):
    """Ids [...] -> rows [..., embedding_dim] in the model's dtype; a head that is tied to it multiplies its table."""

    original_weights = ("weight",)

    def __init__(self, codes: Tensor, scale: Tensor, like: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = *codes.shape, padding_idx
        self.hold("weight", codes, scale)
        self.register_buffer(LIKE, like.detach().new_empty(0), persistent=False)

    @classmethod
    def from_embedding(cls, embedding: nn.Module) -> Self:
        """The compressed form of an `nn.Embedding`; on the meta device, one of the right shapes and no values.

        Raises InvalidModel for what computes otherwise than by a look-up of rows.
        """
        if reason := why_no_table(embedding):
            raise InvalidModel(f"{type(embedding).__name__} has no {cls.format} form: {reason}.")
        weight: Tensor = embedding.weight.detach()  # type: ignore[operator, union-attr]
        codes, scale = cls.quantize(weight, GROUP)
        padding_idx: Any = embedding.padding_idx
        return cls(codes, scale, weight, padding_idx).train(embedding.training)

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows that are looked up."""
        return self._buffers[LIKE].dtype  # type: ignore[union-attr]

    @property
    def device(self) -> torch.device:
        return self.held("weight")[0].device

    def tied(self, kind: type[CompressedLinear], head: nn.Module) -> CompressedLinear:
        """The head, which keeps its own bias, as a layer that reads this very table."""
        layer = kind(*self.held("weight"), bias=head._parameters["bias"])  # type: ignore[arg-type]
        layer.read_table_of(self)
        return layer.train(head.training)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The table that the codes stand for, [num_embeddings, embedding_dim]; exact in float32."""
        return self.dequantized(*self.held("weight"), dtype)

    def forward(self, input: Tensor) -> Tensor:
        codes, scale = self.held("weight")
        return row_lookup(input, codes, scale, self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        like = fn(self._buffers[LIKE])  # type: ignore[arg-type]
        super()._apply(fn, recurse)
        self._buffers[LIKE] = like
        return self

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def why_no_table(embedding: nn.Module) -> str | None:
    """Why rows of codes cannot stand in for an embedding, or None.

    >>> why_no_table(nn.Embedding(3, 2, max_norm=1.0))
    'it scales rows down to max_norm as they are looked up, and writes them back'
    """
    if type(embedding) is not nn.Embedding:
        return f"it is a {type(embedding).__name__}, which may do more than look rows up"
    if embedding.max_norm is not None:
        return "it scales rows down to max_norm as they are looked up, and writes them back"
    if embedding.sparse:
        return "its gradients are sparse, so it is there to be trained"
    return None
