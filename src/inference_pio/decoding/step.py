"""One decode step, composed from a decoder's roles: token in, logits out."""

from __future__ import annotations

from torch import Tensor

from inference_pio.anatomy.decoder import Decoder, DecoderLayer
from inference_pio.anatomy.decoder_attention import GroupedAttention
from inference_pio.anatomy.decoder_mlp import GatedMlp
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import Operations


def logits_of_step(decoder: Decoder, operations: Operations, bucket: Bucket, *, entered: bool = False) -> Tensor:
    """Take the tokens in `bucket.slots` in, which are counted already where they are `entered`; float32
    [B, vocabulary] for the ones after them."""
    if not entered:
        bucket.slots.enter()
    hidden = operations.embed(decoder.embedding, bucket.slots.tokens)
    for number, layer in enumerate(decoder.layers):
        hidden = _attention(layer, hidden, operations, bucket, number)
        hidden = _mlp(layer, hidden, operations)
    return operations.logits(hidden, decoder.norm, decoder.head)


def _attention(layer: DecoderLayer, x: Tensor, operations: Operations, bucket: Bucket, number: int) -> Tensor:
    parts, norm = layer.attention, layer.attention_norm
    if isinstance(parts, GroupedAttention):
        qkv = operations.project(x, (parts.query, parts.key, parts.value), norm=norm)
        attended = operations.attend(parts, qkv, bucket, number)
    else:
        first = parts.query_out_of if parts.query_into is None else parts.query_into
        both = operations.project(x, (first, parts.into_latent), norm=norm)
        latent = parts.sizes.latent + parts.sizes.rope
        query, latents = both[:, :-latent], both[:, -latent:]
        if parts.query_into is not None:
            query = operations.project(query, (parts.query_out_of,), norm=parts.query_into_norm)
        attended = operations.attend_latent(parts, query, latents, bucket, number)
    return operations.project(attended, (parts.out,), residual=x)


def _mlp(layer: DecoderLayer, x: Tensor, operations: Operations) -> Tensor:
    parts = layer.mlp
    if isinstance(parts, GatedMlp):
        hidden = operations.project(x, (parts.gate, parts.up), norm=layer.mlp_norm, gated=True)
        return operations.project(hidden, (parts.down,), residual=x)
    return operations.mix(x, layer.mlp_norm, parts)
