"""The operations on a CPU: the plain form's arithmetic in as few calls as it takes, since a call costs what a small
product does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from inference_pio.anatomy.decoder_attention import GroupedAttention
from inference_pio.anatomy.decoder_norm import Norm
from inference_pio.anatomy.exact_attention import decodes_by_torch
from inference_pio.anatomy.merged_linears import is_called, product_of
from inference_pio.compat import attention_function, attention_name
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import PlainOperations, norms_of
from inference_pio.kernels.attention import fused_attention
from inference_pio.kernels.gated import silu_mul
from inference_pio.kernels.rms_norm import rms_norm
from inference_pio.kernels.rotary_store import Turns, rotate_and_store_at, turns_at

Product = Callable[[Tensor], Tensor]


class HostOperations(PlainOperations):
    """What a step multiplies with is looked up once: where a tensor lies elsewhere, an engine forgets and is built
    anew, as with recorded steps. What a token turns by is looked up once a step."""

    name = "torch, in few calls"

    def __init__(self) -> None:
        self._products: dict[nn.Module, Product | None] = {}
        self._direct: dict[nn.Module, bool] = {}
        self._turns: Turns | None = None

    def forget(self) -> None:
        self._products.clear()
        self._direct.clear()
        self._turns = None

    def of_a_copy(self) -> HostOperations:
        return HostOperations()

    def embed(self, embedding: nn.Module, tokens: Tensor) -> Tensor:
        self._turns = None  # another step begins
        return super().embed(embedding, tokens)

    def project(
        self, x: Tensor, linears: Sequence[nn.Module], *, norm: Norm | None = None, gated: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if linears[0] not in self._products:
            self._products[linears[0]] = None if any(map(is_called, linears)) else product_of(linears)
        product = self._products[linears[0]]
        if product is None:  # they do not lie side by side, or compute in a way of their own
            return super().project(x, linears, norm=norm, gated=gated, residual=residual)
        if norm is not None:
            x = rms_norm(x, norm.weight, norm.eps)
        out = product(x)
        if gated:
            out = silu_mul(out)
        return out if residual is None else residual + out

    def attend(self, attention: GroupedAttention, qkv: Tensor, bucket: Bucket, layer: int) -> Tensor:
        if qkv.dtype != bucket.cos.dtype:
            return super().attend(attention, qkv, bucket, layer)
        if self._turns is None:
            self._turns = turns_at(bucket.cos, bucket.sin, bucket.slots.positions, bucket.written)
        store = bucket.store(layer)
        query = rotate_and_store_at(
            qkv, store.keys, store.values, self._turns,
            heads=attention.heads, key_heads=attention.key_heads, **norms_of(attention),
        )  # fmt: skip
        if bucket.padded or not self._attends_directly(attention.module):
            return self._over(attention, query, store, bucket).reshape(len(qkv), -1)
        keys, values = store.views(int(bucket.slots.lengths))
        out: Tensor = fused_attention(query[:, :, None], keys, values, scale=attention.scale)  # type: ignore[no-untyped-call]
        return out.reshape(len(qkv), -1)

    def _attends_directly(self, module: Any) -> bool:
        """Whether what a module is configured to run would do no more than call torch, as it was when last asked."""
        found = self._direct.get(module)
        if found is None:
            found = decodes_by_torch(attention_function(attention_name(module.config) or "eager"))
            self._direct[module] = found
        return found
