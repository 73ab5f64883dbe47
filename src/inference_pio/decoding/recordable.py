"""The same operations where a step is recorded: nothing asks the host, so the length is read on the device."""

from __future__ import annotations

from torch import Tensor

from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.anatomy.decoder_mlp import Mixture
from inference_pio.anatomy.decoder_norm import Norm
from inference_pio.anatomy.latent_attention import readable_weight
from inference_pio.cache.coded_store import CodedStore
from inference_pio.cache.store import Store
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.weights import expert_weights
from inference_pio.kernels.coded_decode import coded_decode
from inference_pio.kernels.decode_attention import decode_attention
from inference_pio.kernels.experts import expert_down, expert_gate_up
from inference_pio.kernels.latent_attention import latent_attention
from inference_pio.kernels.routing import route


class RecordableOperations(PlainOperations):
    """The library's roundings everywhere but inside attention, which one kernel computes over all that is held."""

    name = "torch, recorded"
    attends_as_configured = False

    def _over(self, attention: GroupedAttention, query: Tensor, store: Store, bucket: Bucket) -> Tensor:
        if isinstance(store, CodedStore):
            view = store.view(bucket.coded_pages)  # type: ignore[attr-defined]
            return coded_decode(query, view, bucket.slots.lengths, starts_of(bucket), scale=attention.scale)
        return decode_attention(
            query, store.keys, store.values, bucket.slots.lengths, starts_of(bucket),
            pages=bucket.pages_of(attention, query), scale=attention.scale,
        )  # fmt: skip

    def _over_latent(
        self, attention: LatentHeads, query: Tensor, turned: Tensor, store: Store, bucket: Bucket
    ) -> Tensor:
        up = readable_weight(attention.out_of_latent, query.dtype)
        out = latent_attention(
            query[:, :, None], turned[:, :, None], store.keys[:, :, 0], store.values[:, :, 0], up,
            bucket.slots.lengths, starts_of(bucket), scale=attention.scale,
        )  # fmt: skip
        return out[:, :, 0]

    def mix(self, x: Tensor, norm: Norm, mixture: Mixture) -> Tensor:
        experts = expert_weights(mixture.experts)
        if experts is None:
            return super().mix(x, norm, mixture)
        gate: Tensor = mixture.router.weight  # type: ignore[assignment]
        normed, index, weight = route(
            x, gate, mixture.rule, correction=mixture.correction, norm_weight=norm.weight, eps=norm.eps
        )
        hidden = expert_gate_up(normed, experts.gate_up, index, scales=experts.gate_up_scale)
        mixed = expert_down(hidden, experts.down, index, weight, scales=experts.down_scale)
        if mixture.shared is not None:
            mixed = mixed + mixture.shared.module(normed)
        return x + mixed


def starts_of(bucket: Bucket) -> Tensor | None:
    """Where rows begin, where they do not all begin at the first token."""
    return bucket.slots.starts if bucket.padded else None
