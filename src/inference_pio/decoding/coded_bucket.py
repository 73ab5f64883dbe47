"""Room for a batch whose cache is kept as codes: steps write the last tokens, pages are coded between runs of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder import Decoder
from inference_pio.anatomy.decoder_attention import GroupedAttention
from inference_pio.cache import CodedCache
from inference_pio.cache.coded_layer import RECENT
from inference_pio.cache.coded_store import CodedStore
from inference_pio.cache.span import starts_of
from inference_pio.cache.store import Kind, bucket
from inference_pio.compat import has_triton
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.page_lists import fixed_heads_of
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import HEAD_DIMS, PAGE
from inference_pio.kernels.triton.support import DTYPES

READ_ON_A_GPU = "int8"
"""The format whose codes a kernel reads; others would be made numbers of, whole, at each step."""


class CodedBucket(Bucket):
    """The library reads the prompt into the cache that was made for the call, and its codes move here (`seat`).

    A page is coded once it lies wholly before the last 64 tokens, as a `CodedLayer` does it; a run of several steps is
    finished first, so up to three of them see its tokens as they were.
    """

    @torch.inference_mode(False)
    def __init__(
        self, model: nn.Module, decoder: Decoder, batch: int, capacity: int, ahead: int, kv_format: str
    ) -> None:
        super().__init__(model, decoder, batch, capacity, ahead)
        self.kv_format = kv_format
        self.stores: list[CodedStore] = []
        self.coded_pages = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._starts: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self.stores) + self.cos.nbytes + self.sin.nbytes

    @property
    def starts(self) -> Tensor | None:
        return self._starts

    @property
    def written(self) -> Tensor:
        return self.slots.recent

    def store(self, layer: int) -> Any:
        return self.stores[layer]

    def clear(self, mask: Tensor | None) -> None:
        self.padded = mask is not None and not bool((mask != 0).all())
        self._starts = starts_of(mask).to(self.device) if mask is not None and self.padded else None
        for store in self.stores:
            for side in store.pages:
                side.count = 0
        self.coded_pages.zero_()

    @torch.inference_mode(False)
    def furnish(self) -> None:
        if self.stores:
            return
        dtype = self.decoder.dtype
        for layer in self.decoder.layers:
            parts = layer.attention
            assert isinstance(parts, GroupedAttention)
            heads = (parts.key_heads, parts.head_dim)
            kind = Kind(self.batch, *heads, *heads, dtype, self.device)
            self.stores.append(CodedStore(kind, self.kv_format, self.capacity))

    def list_pages(self) -> None:
        """Raises InvalidSetting where heads follow a fixed pattern, which reads pages as they are."""
        if any(fixed_heads_of(layer.attention.module) for layer in self.decoder.layers):
            raise InvalidSetting("heads follow a fixed pattern, and the cache is kept as codes, which it does not read")

    def prompt_cache(self, given: dict[str, Any]) -> Any:
        return given["past_key_values"]

    def seat(self, cache: Any) -> int:
        for store, layer in zip(self.stores, cache.layers, strict=True):
            store.seat(layer)
        self.coded_pages.fill_(self.stores[0].count)
        return self.stores[0].count * PAGE

    def before_run(self, held: int, ahead: int) -> None:
        while held - self.stores[0].count * PAGE >= RECENT + PAGE:
            for store in self.stores:
                store.code_a_page()
            self.coded_pages += 1
            self.slots.recent -= PAGE

    def grow(self, capacity: int, held: int) -> None:
        self.runners.clear()
        self.capacity = bucket(capacity)
        for store in self.stores:
            store.reserve(self.capacity)
        self.cos, self.sin = self._angles()

    def handed_out(self, model: Any, held: int) -> CodedCache:
        cache = CodedCache.of(model, self.kv_format)
        for store, layer in zip(self.stores, cache.coded_layers, strict=True):
            store.hand_over(layer, held)
        return cache


def why_not_coded_steps(cache: CodedCache, decoder: Decoder | None, device: torch.device) -> str | None:
    """Why recorded steps do not read a cache that is kept as codes, or None."""
    if device.type == "cuda" and cache.kv_format != READ_ON_A_GPU:
        return f"its cache is kept as {cache.kv_format} codes, and on a GPU recorded steps read {READ_ON_A_GPU} alone"
    if decoder is None or not all(isinstance(layer.attention, GroupedAttention) for layer in decoder.layers):
        return f"its cache is kept as {cache.kv_format} codes of a latent, which recorded steps do not read"
    if device.type == "cuda" and (reason := _why_no_kernel(decoder)):
        return f"its cache is kept as {cache.kv_format} codes, and {reason}"
    if len(cache.coded_layers) != len(decoder.layers):
        return f"its cache is kept as {cache.kv_format} codes in some of its layers alone"
    return None


def _why_no_kernel(decoder: Decoder) -> str | None:
    """Why no kernel reads the codes of these layers, or None: making numbers of them would wait for the device."""
    widths = {layer.attention.head_dim for layer in decoder.layers if isinstance(layer.attention, GroupedAttention)}
    dtype = decoder.dtype
    if not has_triton():
        return "the package triton is not installed"
    if widths - set(HEAD_DIMS):
        return f"our kernel reads heads of {', '.join(map(str, HEAD_DIMS))} channels"
    return None if dtype in DTYPES else f"our kernel reads them for models in 16 bits, and this one is {dtype}"
