"""What a step is composed of: the protocol, and its plain form, which rounds wherever the library rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inference_pio.anatomy.attention_function import attend_as_configured
from inference_pio.anatomy.decoder import Decoder
from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.anatomy.decoder_mlp import Mixture
from inference_pio.anatomy.decoder_norm import Norm
from inference_pio.anatomy.merged_linears import merged_linear
from inference_pio.cache.store import Store
from inference_pio.compat import left_padding_mask
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.sampling import Recipe
from inference_pio.decoding.slots import Slots
from inference_pio.kernels.gated import silu_mul
from inference_pio.kernels.rms_norm import rms_norm
from inference_pio.kernels.rotary import norm_rotate
from inference_pio.kernels.rotary_store import rotate_and_store


class Operations(Protocol):
    """Rows are tokens, [B, width], one for each row of the batch; `layer` is the number of the layer in the cache."""

    name: str
    attends_as_configured: bool
    """Whether attention is computed by the function that a module is configured to run."""
    reads_prompts: bool
    """Whether prompts may be computed from a decoder's parts too, where rounding may differ from the library's."""

    @property
    def notes(self) -> list[str]:
        """What could not be found out beforehand, and so goes by rule."""

    def prepare(self, decoder: Decoder, bucket: Bucket) -> None:
        """Once for a bucket, before its steps are recorded: the slots may be changed, nothing else."""

    def forget(self) -> None:
        """Let go of all that was looked up in a model's tensors: they may lie elsewhere now."""

    def of_a_copy(self) -> Operations:
        """What a copy of the model computes with: nothing that was looked up in this one's tensors."""

    def embed(self, embedding: nn.Module, tokens: Tensor) -> Tensor: ...

    def project(
        self, x: Tensor, linears: Sequence[nn.Module], *, norm: Norm | None = None, gated: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Linear layers side by side, of `x` or its norm; `gated`: the first through SiLU times the second."""

    def attend(self, attention: GroupedAttention, qkv: Tensor, bucket: Bucket, layer: int) -> Tensor:
        """Rotate and keep the new token, and let its queries attend: [B, heads * width]."""

    def attend_latent(
        self, attention: LatentHeads, query: Tensor, latent: Tensor, bucket: Bucket, layer: int
    ) -> Tensor: ...

    def mix(self, x: Tensor, norm: Norm, mixture: Mixture) -> Tensor:
        """A mixture of experts behind its norm, added to `x`."""

    def logits(self, x: Tensor, norm: Norm, head: nn.Module) -> Tensor:
        """float32 [B, vocabulary]."""

    def choose(self, recipe: Recipe, logits: Tensor, slots: Slots, step: int, *, enters: bool) -> bool:
        """Leave the tokens of a step, the next of one go, in the slots. `enters`: they may be counted as held, too;
        whether they were."""


class PlainOperations:
    """The library's own arithmetic, rounding for rounding; the host reads how long the cache is."""

    name = "torch"
    attends_as_configured = True
    reads_prompts = False

    @property
    def notes(self) -> list[str]:
        return []

    def prepare(self, decoder: Decoder, bucket: Bucket) -> None:
        """Nothing is to be found out."""

    def forget(self) -> None:
        """Nothing is kept."""

    def of_a_copy(self) -> Operations:
        return self

    def embed(self, embedding: nn.Module, tokens: Tensor) -> Tensor:
        hidden: Tensor = embedding(tokens)
        return hidden

    def project(
        self, x: Tensor, linears: Sequence[nn.Module], *, norm: Norm | None = None, gated: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if norm is not None:
            x = rms_norm(x, norm.weight, norm.eps)
        out = products(x, linears, gated=gated)
        return out if residual is None else residual + out

    def attend(self, attention: GroupedAttention, qkv: Tensor, bucket: Bucket, layer: int) -> Tensor:
        store, slots = bucket.store(layer), bucket.slots
        query = rotate_and_store(
            qkv, store.keys, store.values, bucket.cos, bucket.sin, slots.positions, bucket.written,
            heads=attention.heads, key_heads=attention.key_heads, **norms_of(attention),
        )  # fmt: skip
        return self._over(attention, query, store, bucket).reshape(len(qkv), -1)

    def attend_latent(
        self, attention: LatentHeads, query: Tensor, latent: Tensor, bucket: Bucket, layer: int
    ) -> Tensor:
        store, slots, sizes = bucket.store(layer), bucket.slots, attention.sizes
        kept, turned = latent[:, : sizes.latent], latent[:, sizes.latent :]
        heads = query.view(len(query), sizes.heads, -1)
        cos, sin = (table[slots.positions.long()][:, None] for table in (bucket.cos, bucket.sin))
        rotated, turned = norm_rotate(
            heads[:, None, :, sizes.nope :], turned[:, None, None], cos, sin, interleaved=attention.interleaved
        )
        place = (slots.lengths - 1).long()
        norm = attention.latent_norm
        store.keys.index_copy_(1, place, rms_norm(kept, norm.weight, norm.eps)[:, None, None])
        store.values.index_copy_(1, place, turned.transpose(1, 2))
        return self._over_latent(attention, heads[..., : sizes.nope], rotated[:, :, 0], store, bucket).flatten(1)

    def mix(self, x: Tensor, norm: Norm, mixture: Mixture) -> Tensor:
        mixed: Tensor = mixture.module(rms_norm(x, norm.weight, norm.eps)[:, None])
        return x + mixed[:, 0]

    def logits(self, x: Tensor, norm: Norm, head: nn.Module) -> Tensor:
        found: Tensor = head(rms_norm(x, norm.weight, norm.eps))
        return found.float()

    def choose(self, recipe: Recipe, logits: Tensor, slots: Slots, step: int, *, enters: bool) -> bool:
        slots.leave(recipe.choose(logits, slots), step)
        return False

    def _over(self, attention: GroupedAttention, query: Tensor, store: Store, bucket: Bucket) -> Tensor:
        """Queries [B, heads, width] over the tokens that are held: [B, heads, width]."""
        keys, values = store.views(int(bucket.slots.lengths))
        return self._as_configured(attention, query, keys, values, bucket)

    def _over_latent(
        self, attention: LatentHeads, query: Tensor, turned: Tensor, store: Store, bucket: Bucket
    ) -> Tensor:
        expand: Any = attention.module.expand_kv
        keys, values = expand(*store.views(int(bucket.slots.lengths)))
        return self._as_configured(attention, torch.cat((query, turned), -1), keys, values, bucket)

    def _as_configured(
        self, attention: GroupedAttention | LatentHeads, query: Tensor, keys: Tensor, values: Tensor, bucket: Bucket
    ) -> Tensor:
        mask = left_padding_mask(bucket.slots.starts, int(bucket.slots.lengths)) if bucket.padded else None
        out = attend_as_configured(attention.module, query[:, :, None], keys, values, mask, scaling=attention.scale)
        return out[:, 0]


def products(x: Tensor, linears: Sequence[nn.Module], *, gated: bool = False) -> Tensor:
    """What linear layers side by side make of `x` [..., K], in one product if they lie so; `gated`: the first through
    SiLU times the second."""
    whole = merged_linear(linears, x) if len(linears) > 1 else None
    parts: list[Tensor] = [linear(x) for linear in linears] if whole is None else [whole]
    if gated:
        parts = [silu_mul(*parts)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def norms_of(attention: GroupedAttention) -> dict[str, Any]:
    """The norms of queries and keys, as `rotate_and_store` takes them."""
    query, key = attention.query_norm, attention.key_norm
    if query is None or key is None:
        return {}
    return {"query_norm": query.weight, "key_norm": key.weight, "eps": query.eps}
