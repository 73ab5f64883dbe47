"""The operations as few large kernels: each product takes the norm before it and what stands behind it along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder import Decoder
from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads
from inference_pio.anatomy.decoder_mlp import Mixture
from inference_pio.anatomy.decoder_norm import Norm
from inference_pio.anatomy.latent_attention import readable_weight
from inference_pio.cache.coded_store import CodedStore
from inference_pio.cache.store import Store
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.launches import Launches
from inference_pio.decoding.operations import norms_of
from inference_pio.decoding.recordable import RecordableOperations, starts_of
from inference_pio.decoding.sampling import Recipe
from inference_pio.decoding.slots import Slots
from inference_pio.decoding.step import logits_of_step
from inference_pio.decoding.weights import (
    FactoredWeights,
    LinearWeights,
    PackedWeights,
    expert_weights,
    factored_weights,
    linear_weights,
    packed_weights,
    unpacked_beside_plain,
)
from inference_pio.formats.compressed_embedding import CompressedEmbedding
from inference_pio.kernels.exponent12 import unpack
from inference_pio.kernels.reordered import reordered
from inference_pio.kernels.triton.attention_support import (
    supports_coded_decode,
    supports_decode,
    supports_latent_decode,
    supports_rotated_decode,
)
from inference_pio.kernels.triton.gemv_choice import choose_gemv_launch
from inference_pio.kernels.triton.gemv_launch import MOST_EXACT_ROWS, GemvLaunch, weight_bytes
from inference_pio.kernels.triton.launch import (
    CodedLaunch,
    DecodeLaunch,
    choose_coded_launch,
    choose_decode_launch,
    choose_rotated_launch,
    device_limits,
    last_joins,
)
from inference_pio.kernels.triton.row_support import MOST_ROWS, supports_next_token, supports_row_lookup

MOST_ROTATED = 4096
"""Tokens of room up to which attention rotates by itself: measured on an H100 with Qwen3-4B, 320 tokens/s behind 512
where two launches give 315, but behind 8K 265 of 269 and behind 32K 188 of 204."""


class FusedOperations(RecordableOperations):
    """Our kernels for up to eight rows, torch's products and our elementwise kernels for more.

    A dense layer takes five launches: queries, keys and values; rotation, cache and attention, two in rooms of more
    than `MOST_ROTATED` tokens; its result; gate and up; down. `launches` of products are those that were found fastest
    here. `dependent`: products, the look-up of codes and the choice of a token begin before the kernel in front of them
    has ended; `overlapping`: so do routers, experts and what stands around latent attention; `ahead`: so does attention
    that rotates. `joined`: the last program of attention joins, where that is little, in place of a second launch;
    `rotated`: attention rotates and stores by itself, where that serves.
    """

    name = "triton"
    reads_prompts = True

    def __init__(
        self, launches: Launches | None = None, *, dependent: bool = False, overlapping: bool = False,
        joined: bool = True, rotated: bool = True, ahead: bool = False,
    ) -> None:  # fmt: skip
        self.launches = launches or Launches()
        self.dependent, self.overlapping, self.joined = dependent, overlapping, joined
        self.rotated, self.ahead = rotated, ahead
        self._routing: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()
        self._attention: dict[Any, tuple[DecodeLaunch, Any]] = {}
        self._coded: dict[Any, tuple[CodedLaunch, Any]] = {}
        self._choosing: dict[Any, Any] = {}

    @property
    def notes(self) -> list[str]:
        return self.launches.notes

    def prepare(self, decoder: Decoder, bucket: Bucket) -> None:
        """Find launches for a bucket's products, by one step that is listened to."""
        if bucket.device.type == "cuda" and bucket.batch <= MOST_ROWS:
            self.launches.listen()
            logits_of_step(decoder, self, bucket)
            self.launches.tune(bucket.device)

    def embed(self, embedding: nn.Module, tokens: Tensor) -> Tensor:
        from inference_pio.kernels.triton.row_lookup import row_lookup

        if isinstance(embedding, CompressedEmbedding):
            codes, scale = embedding.held("weight")
            if supports_row_lookup(tokens, codes, scale, embedding.dtype):
                return row_lookup(tokens, codes, scale, embedding.dtype, dependent=self.dependent)
        return super().embed(embedding, tokens)

    def project(
        self, x: Tensor, linears: Sequence[nn.Module], *, norm: Norm | None = None, gated: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        factors = factored_weights(linears) if len(x) <= MOST_ROWS else None
        if factors is not None:
            return self._through_few(x, factors, norm=norm, gated=gated, residual=residual)
        few = len(x) <= MOST_ROWS and x.dtype is torch.bfloat16
        packed = packed_weights(linears) if few else None
        if packed is not None:
            return self._multiply_packed(x, packed, norm=norm, gated=gated, residual=residual)
        held: Sequence[LinearWeights | None] | None = unpacked_beside_plain(linears) if few else None
        held = held or [linear_weights(layer) for layer in linears]
        if len(x) > MOST_ROWS or None in held or len({layer.kind for layer in held if layer}) > 1:
            return super().project(x, linears, norm=norm, gated=gated, residual=residual)
        return self._multiply(x, held, norm=norm, gated=gated, residual=residual)  # type: ignore[arg-type]

    def _through_few(
        self, x: Tensor, factors: FactoredWeights, *, norm: Norm | None, gated: bool, residual: Tensor | None
    ) -> Tensor:
        """Two products, the second of all layers at once; inputs that have an order are put into it first."""
        into, order, rank = [factors.into], factors.order, factors.rank
        if order is None:
            few = self._multiply(x, into, norm=norm)
        else:
            put = reordered(x, order) if norm is None else reordered(x, order, norm.weight, norm.eps)
            few = self._multiply(put[:, rank:], into, residual=put[:, :rank])
        return self._multiply(few, factors.out_of, gated=gated, residual=residual)

    def attend(self, attention: GroupedAttention, qkv: Tensor, bucket: Bucket, layer: int) -> Tensor:
        from inference_pio.kernels.triton.rotated_decode import rotated_decode

        store, slots, starts, norms = bucket.store(layer), bucket.slots, starts_of(bucket), norms_of(attention)
        if (
            not self.rotated
            or bucket.pages is not None
            or bucket.may_choose
            or isinstance(store, CodedStore)
            or store.capacity > MOST_ROTATED
        ):
            return super().attend(attention, qkv, bucket, layer)
        given = (qkv, store.keys, store.values, bucket.cos, bucket.sin, slots.positions, slots.lengths, starts)
        weights = norms.get("query_norm"), norms.get("key_norm")
        if not supports_rotated_decode(*given, attention.heads, weights):
            return super().attend(attention, qkv, bucket, layer)
        sizes = (len(qkv), attention.heads, attention.key_heads, attention.head_dim)
        launch, scratch = self._attention_of(*sizes, store.capacity, qkv.device, rotated=True)
        out = rotated_decode(
            *given, heads=attention.heads, key_heads=attention.key_heads, scale=attention.scale, launch=launch,
            scratch=scratch, dependent=self.ahead, **norms,
        )  # fmt: skip
        return out.reshape(len(qkv), -1)

    def _over(self, attention: GroupedAttention, query: Tensor, store: Store, bucket: Bucket) -> Tensor:
        from inference_pio.kernels.triton.decode import decode_attention

        slots, starts = bucket.slots, starts_of(bucket)
        if isinstance(store, CodedStore):
            return self._over_codes(attention, query, store, bucket)
        if not supports_decode(query, store.keys, store.values, slots.lengths, starts):
            return super()._over(attention, query, store, bucket)
        rows, heads, width = query.shape
        sizes = (rows, heads, store.keys.shape[2], width)
        launch, scratch = self._attention_of(*sizes, store.capacity, query.device)
        return decode_attention(
            query, store.keys, store.values, slots.lengths, starts, pages=bucket.pages_of(attention, query),
            scale=attention.scale, launch=launch, scratch=scratch,
        )  # fmt: skip

    def _over_codes(self, attention: GroupedAttention, query: Tensor, store: CodedStore, bucket: Bucket) -> Tensor:
        from inference_pio.kernels.triton.coded_decode import coded_decode

        view, lengths, starts = store.view(bucket.coded_pages), bucket.slots.lengths, starts_of(bucket)  # type: ignore[attr-defined]
        if not supports_coded_decode(query, view, lengths, starts):
            return super()._over(attention, query, store, bucket)  # type: ignore[arg-type]
        launch, scratch = self._over_codes_of(query, store.kind.key_heads, view.tokens)
        return coded_decode(query, view, lengths, starts, scale=attention.scale, launch=launch, scratch=scratch)

    def _attention_of(
        self,
        rows: int,
        heads: int,
        key_heads: int,
        width: int,
        capacity: int,
        device: torch.device,
        *,
        rotated: bool = False,
    ) -> tuple[DecodeLaunch, Any]:
        """Its scratch stays: the counters are zero after each launch, and layers follow one another."""
        from inference_pio.kernels.triton.decode import DecodeScratch

        key = (rows, heads, key_heads, width, capacity, rotated, device)
        if key not in self._attention:
            choose = choose_rotated_launch if rotated else choose_decode_launch
            launch = choose(device_limits(device), rows, key_heads, width, capacity)
            counted = key_heads if self.joined and last_joins(launch, heads // key_heads) else 0
            made = DecodeScratch.of(rows, heads, width, launch, device, counted=counted)
            self._attention[key] = launch, made
        return self._attention[key]

    def _over_codes_of(self, query: Tensor, key_heads: int, capacity: int) -> tuple[CodedLaunch, Any]:
        from inference_pio.kernels.triton.decode import DecodeScratch

        rows, heads, width = query.shape
        key = (rows, heads, key_heads, width, capacity, query.device)
        if key not in self._coded:
            launch = choose_coded_launch(device_limits(query.device), rows, key_heads, width, capacity)
            self._coded[key] = launch, DecodeScratch.of(rows, heads, width, launch, query.device)
        return self._coded[key]

    def attend_latent(
        self, attention: LatentHeads, query: Tensor, latent: Tensor, bucket: Bucket, layer: int
    ) -> Tensor:
        from inference_pio.kernels.triton.latent_decode import latent_decode_attention
        from inference_pio.kernels.triton.latent_step import absorb_and_store, expand

        store, slots, sizes = bucket.store(layer), bucket.slots, attention.sizes
        lengths, starts = slots.lengths, starts_of(bucket)
        held, turned = store.keys[:, :, 0], store.values[:, :, 0]
        like = (
            query.new_empty(len(query), sizes.heads, sizes.latent),
            query.new_empty(len(query), sizes.heads, sizes.rope),
        )
        if len(query) > MOST_ROWS or not supports_latent_decode(*like, held, turned, lengths, starts):
            return super().attend_latent(attention, query, latent, bucket, layer)
        up, norm = readable_weight(attention.out_of_latent, query.dtype), attention.latent_norm
        absorbed, rotated = absorb_and_store(
            query, up, latent, norm.weight, norm.eps, bucket.cos, bucket.sin, slots.positions, store.tensors[0],
            lengths, heads=sizes.heads, nope=sizes.nope, interleaved=attention.interleaved, out=like,
            dependent=self.overlapping,
        )  # fmt: skip
        attended = latent_decode_attention(absorbed, rotated, held, turned, lengths, starts, scale=attention.scale)
        return expand(attended, up, sizes.nope, dependent=self.overlapping)

    def mix(self, x: Tensor, norm: Norm, mixture: Mixture) -> Tensor:
        from inference_pio.kernels.triton.experts import expert_down, expert_gate_up
        from inference_pio.kernels.triton.routing import route

        experts, shared = expert_weights(mixture.experts), _shared(mixture)
        if len(x) > MOST_ROWS or experts is None or shared is None:
            return super().mix(x, norm, mixture)
        gate: Tensor = mixture.router.weight  # type: ignore[assignment]
        normed, index, weight = route(
            x, gate, mixture.rule, correction=mixture.correction, norm_weight=norm.weight, eps=norm.eps,
            scratch=self._scratch_of(mixture.router, x), dependent=self.overlapping,
        )  # fmt: skip
        up, down = ({"dependent": self.overlapping, **shared.get(name, {})} for name in ("up", "down"))
        hidden = expert_gate_up(normed, experts.gate_up, index, scales=experts.gate_up_scale, **up)
        return expert_down(hidden, experts.down, index, weight, scales=experts.down_scale, residual=x, **down)

    def _scratch_of(self, router: nn.Module, x: Tensor) -> Any:
        """A router's scratch stays: its counters are zero after each launch, and a step need not set them."""
        from inference_pio.kernels.triton.routing import RoutingScratch

        experts: int = len(router.weight)  # type: ignore[arg-type]
        held, key = self._routing.setdefault(router, {}), (len(x), experts, x.device)
        if key not in held:
            held[key] = RoutingScratch.of(len(x), experts, x.device)
        return held[key]

    def logits(self, x: Tensor, norm: Norm, head: nn.Module) -> Tensor:
        held, packed = linear_weights(head), packed_weights([head])
        if len(x) > MOST_ROWS or (held is None and (packed is None or x.dtype is not torch.bfloat16)):
            return super().logits(x, norm, head)
        if packed is not None:
            out = x.new_empty(len(x), len(packed.packed[0].codes), dtype=torch.float32)
            return self._multiply_packed(x, packed, norm=norm, out=out)
        assert held is not None
        out = x.new_empty(len(x), len(held.weight), dtype=torch.float32)
        return self._multiply(x, [held], norm=norm, out=out)

    def choose(self, recipe: Recipe, logits: Tensor, slots: Slots, step: int, *, enters: bool) -> bool:
        from inference_pio.kernels.triton.next_token import NextTokenScratch, next_token

        tokens, counts = (slots.tokens, slots.given[:, step]), (slots.positions, slots.made)
        if not recipe.best_alone or not supports_next_token(logits, tokens, counts, slots.counts):
            return super().choose(recipe, logits, slots, step, enters=enters)
        rows, vocabulary = logits.shape
        key = (rows, vocabulary, logits.device)
        if key not in self._choosing:
            self._choosing[key] = NextTokenScratch.of(rows, vocabulary, logits.device)
        next_token(
            logits, *tokens, *counts, slots.counts if enters else None, scratch=self._choosing[key],
            dependent=self.dependent,
        )  # fmt: skip
        return enters

    def _multiply_packed(
        self, x: Tensor, held: PackedWeights, *, norm: Norm | None = None, gated: bool = False,
        residual: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The bits that `_multiply` gives for the plain weights: in steps of as many columns or parts of them; by the
        very launch, on weights that are unpacked first, where matrix units multiply."""
        from inference_pio.kernels.triton.exponent12_gemv import exact_gemv
        from inference_pio.kernels.triton.gemv import gemv

        biases = held.biases if any(bias is not None for bias in held.biases) else None
        given: dict[str, Any] = {"biases": biases, "gated": gated, "residual": residual, "out": out}
        if norm is not None:
            given |= {"norm_weight": norm.weight, "eps": norm.eps}
        launch, columns = self.launches.exact_launch_for(x, held.packed, dependent=self.dependent, **_beside(given))
        if launch.stages or len(x) > MOST_EXACT_ROWS:
            return gemv(x, [unpack(packed) for packed in held.packed], launch=launch, **given)
        return exact_gemv(x, held.packed, columns=columns, launch=launch, **given)

    def _multiply(
        self, x: Tensor, held: Sequence[LinearWeights], *, norm: Norm | None = None, gated: bool = False,
        residual: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        from inference_pio.kernels.triton.gemv import gemv

        weights = [layer.weight for layer in held]
        scales = [layer.scale for layer in held if layer.scale is not None] or None
        biases = [layer.bias for layer in held] if any(layer.bias is not None for layer in held) else None
        given: dict[str, Any] = {"scales": scales, "biases": biases, "gated": gated, "residual": residual, "out": out}
        if norm is not None:
            given |= {"norm_weight": norm.weight, "eps": norm.eps}
        launch = self.launches.launch_for(x, weights, scales, dependent=self.dependent, **_beside(given))
        if launch is None and self.dependent:
            launch = _dependent_by_rule(x, weights, held[0].kind[1], gated)
        return gemv(x, weights, launch=launch, **given)


def _dependent_by_rule(x: Tensor, weights: Sequence[Tensor], group: int, gated: bool) -> GemvLaunch:
    rows = sum(map(len, weights))
    return choose_gemv_launch(
        device_limits(x.device), len(x), rows, x.shape[1], weight_bytes(weights[0], group), gated=gated, group=group,
        dependent=True, bfloat16=x.dtype is torch.bfloat16, fp8=weights[0].dtype is torch.uint8,
    )  # fmt: skip


def _shared(mixture: Mixture) -> dict[str, dict[str, Any]] | None:
    """How the shared expert goes along with the chosen ones; empty where there is none, None where it cannot."""
    if mixture.shared is None:
        return {}
    parts = [linear_weights(layer) for layer in (mixture.shared.gate, mixture.shared.up, mixture.shared.down)]
    if any(part is None or part.bias is not None for part in parts):
        return None
    gate, up, down = parts
    assert gate is not None
    assert up is not None
    assert down is not None
    if gate.kind != up.kind:
        return None
    scales = None if gate.scale is None or up.scale is None else (gate.scale, up.scale)
    return {
        "up": {"shared": (gate.weight, up.weight), "shared_scales": scales},
        "down": {"shared": down.weight, "shared_scales": down.scale},
    }


def _beside(given: dict[str, Any]) -> dict[str, Any]:
    """What stands around a product, in the words by which launches are kept."""
    out = given["out"]
    return {
        "normed": "norm_weight" in given,
        "gated": given["gated"],
        "added": given["residual"] is not None,
        "out_dtype": None if out is None else out.dtype,
    }
