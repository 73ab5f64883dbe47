"""A whole prompt, composed from a decoder's roles: its tokens in, the logits behind the last one out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference_pio.anatomy.attention_function import attend_densely
from inference_pio.anatomy.decoder import Decoder
from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.anatomy.decoder_mlp import GatedMlp, Mixture
from inference_pio.cache.store import Store
from inference_pio.compat import left_padding_mask
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import Operations, norms_of, products
from inference_pio.kernels.rms_norm import add_rms_norm, rms_norm
from inference_pio.kernels.rotary import norm_rotate


class Seen(NamedTuple):
    """What all layers are told of a prompt's tokens: cosines and sines [B or 1, S, R], and which keys they see, where
    that is not plainly those up to their own."""

    turns: tuple[Tensor, Tensor]
    mask: Tensor | None


def logits_of_prompt(
    decoder: Decoder, operations: Operations, bucket: Bucket, tokens: Tensor, last: Tensor
) -> Tensor:  # fmt: skip
    """Take `tokens` int64 [B, S] in from place 0 on; float32 [B, vocabulary] behind those at place `last`, int64 [1].

    Rows begin at `bucket.slots.starts` where they are padded. What stands behind `last` changes nothing before it; its
    keys and values lie where the next tokens' will.
    """
    seen = _seen(bucket, tokens.shape[1])
    hidden: Tensor = decoder.embedding(tokens)
    first = decoder.layers[0].attention_norm
    normed = rms_norm(hidden, first.weight, first.eps)
    for number, (layer, behind) in enumerate(zip(decoder.layers[:-1], decoder.layers[1:], strict=True)):
        attended = _attended(layer.attention, normed, bucket.store(number), seen)
        normed, hidden = add_rms_norm(attended, hidden, layer.mlp_norm.weight, layer.mlp_norm.eps)
        out = _through(layer.mlp, normed)
        normed, hidden = add_rms_norm(out, hidden, behind.attention_norm.weight, behind.attention_norm.eps)
    layer = decoder.layers[-1]  # behind its attention nothing but the last token is asked for
    attended = _attended(layer.attention, normed, bucket.store(len(decoder.layers) - 1), seen, last)
    hidden = hidden.index_select(1, last)
    normed, hidden = add_rms_norm(attended, hidden, layer.mlp_norm.weight, layer.mlp_norm.eps)
    return operations.logits((hidden + _through(layer.mlp, normed))[:, 0], decoder.norm, decoder.head)


def _seen(bucket: Bucket, places: int) -> Seen:
    if not bucket.padded:
        return Seen((bucket.cos[None, :places], bucket.sin[None, :places]), None)
    starts = bucket.slots.starts
    positions = (torch.arange(places, device=starts.device) - starts[:, None]).clamp_(min=0)
    return Seen((bucket.cos[positions], bucket.sin[positions]), left_padding_mask(starts, places, places))


def _attended(
    attention: GroupedAttention | LatentHeads, x: Tensor, store: Store, seen: Seen, last: Tensor | None = None
) -> Tensor:
    """Rotate and keep all tokens, and let each see those up to its own; what comes of all, or of those at `last`."""
    if isinstance(attention, LatentHeads):
        called: Any = attention.module
        given = {"position_embeddings": seen.turns, "attention_mask": seen.mask, "past_key_values": _Keeping(store)}
        whole: Tensor = called(hidden_states=x, **given)[0]
        return whole if last is None else whole.index_select(1, last)
    heads = [attention.heads, attention.key_heads, attention.key_heads]
    qkv = products(x, (attention.query, attention.key, attention.value))
    query, key, value = torch.split(qkv.view(*x.shape[:2], sum(heads), attention.head_dim), heads, 2)
    query, key = norm_rotate(query, key, *seen.turns, **norms_of(attention))
    keys, values = _Keeping(store).update(key, value.transpose(1, 2))
    out = attend_densely(attention.module, query, keys, values, seen.mask, scaling=attention.scale).flatten(2)
    return products(out if last is None else out.index_select(1, last), (attention.out,))


class _Keeping:
    """What an attention is given as its cache: a prompt's keys and values go to a store, from place 0 on."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def update(self, key: Tensor, value: Tensor, *args: Any, **how: Any) -> tuple[Tensor, Tensor]:
        self._store.write(key, value, 0)
        return self._store.views(key.shape[2])


def _through(mlp: GatedMlp | Mixture, x: Tensor) -> Tensor:
    if isinstance(mlp, GatedMlp):
        return products(products(x, (mlp.gate, mlp.up), gated=True), (mlp.down,))
    out: Tensor = mlp.module(x)
    return out
