"""The heads of one layer: which calls are served over chosen blocks, and which are better dense, with the reason."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from inference_pio.anatomy.pattern_counts import PatternCounts
from inference_pio.anatomy.plain_calls import ExtentReader
from inference_pio.kernels.plain_mask import Extent
from inference_pio.sparsity.audited_decode import AuditedDecode, DecodeSettings
from inference_pio.sparsity.audited_prefill import AuditedPrefill, PrefillSettings
from inference_pio.sparsity.backend import Attended
from inference_pio.sparsity.certified_prefill import certified_prefill
from inference_pio.sparsity.page_memory import PageMemory


@dataclass(frozen=True)
class AdaptiveSettings:
    """How a layer is served: `eps` is the mass that certified mode may drop, `dense_below` counts visible keys."""

    prefill: PrefillSettings = field(default_factory=PrefillSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    eps: float | None = None
    dense_below: int = 4096


@dataclass(frozen=True)
class Served:
    """A call that was served: its output `[B, H, S, D]`, and how many of the visible blocks it read, over all heads."""

    phase: str
    backend: str
    out: Tensor
    kept: int | Tensor
    visible: int | Tensor


def _served(phase: str, attended: Attended) -> Served:
    kept, visible = (one.sum() if isinstance(one, Tensor) else one for one in (attended.kept, attended.visible))
    return Served(phase, attended.backend.name, attended.out, kept, visible)


class AdaptiveHeads:
    """What the heads of one layer have shown, and the caches they were given; a copied model's learn anew."""

    def __init__(
        self, settings: AdaptiveSettings, number: int = 0, counts: PatternCounts | None = None,
        reader: ExtentReader | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.number = settings, number
        self.counts, self.reader = counts or PatternCounts(), reader or ExtentReader()
        self.prefill: AuditedPrefill | None = None
        self.decode: AuditedDecode | None = None
        self._memory = PageMemory()
        self._given = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptiveHeads:
        shared = memo.setdefault(id(self.counts), PatternCounts())
        return AdaptiveHeads(self.settings, self.number, shared, ExtentReader())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, the heads are their settings; what they learned and the caches they saw stay here."""
        return AdaptiveHeads, (self.settings, self.number)

    @property
    def dense_below(self) -> int:
        return self.settings.dense_below

    def page_chooser(self, heads: int, key_heads: int, device: torch.device) -> AuditedDecode | None:
        """What these heads have shown at decode; None in certified mode, which serves prefill alone."""
        if self.settings.eps is not None:
            return None
        if self.decode is None or self.decode.shares.device != device:
            self.decode = AuditedDecode(heads, key_heads, self.settings.decode, device)
        return self.decode

    def given(self, cache: Any, index: int | None) -> None:
        """A call of this layer begins, with this cache or none."""
        layers = getattr(cache, "layers", None)
        layer = layers[index] if layers is not None and index is not None and index < len(layers) else None
        keys = getattr(layer, "keys", None)
        self._given.layer = layer if layer is None else weakref.ref(layer)
        self._given.was_last = isinstance(keys, Tensor) and self._memory.is_last(layer, keys)

    def many_tokens(self) -> None:
        """This call brings more than one."""
        layer = self._given.layer() if getattr(self._given, "layer", None) is not None else None
        if layer is not None:
            self._memory.forget(layer)

    def why_dense(self, query: Tensor, key: Tensor) -> str | None:
        """Why a call must be dense whatever its mask says."""
        if torch.compiler.is_compiling():
            return "compiled code"
        if query.is_cuda and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph that is recorded"
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
            return "gradients"
        return f"fewer than {least} tokens" if key.shape[2] < (least := self.settings.dense_below) else None

    def serve(self, query: Tensor, key: Tensor, value: Tensor, extent: Extent, scale: float | None) -> Served | str:
        """Attention of `[B, H, S, D]` over what the extent shows of `[B, key heads, L, D]`; or why it is dense."""
        if extent.end < self.settings.dense_below:
            return f"fewer than {self.settings.dense_below} tokens"
        starts = _starts(extent, query.device)
        seen_key, seen_value = key[:, :, : extent.end], value[:, :, : extent.end]
        if query.shape[2] > 1:
            if self.settings.eps is not None:
                return self._certified(query, seen_key, seen_value, starts, scale, self.settings.eps)
            return self._prefill(query, seen_key, seen_value, starts, scale)
        return self._decode(query, key, seen_key, seen_value, extent, starts, scale)

    def report(self) -> dict[str, Any]:
        """What the audits found, at prefill and at decode."""
        parts = {"prefill": self.prefill, "decode": self.decode}
        return {name: part.log.to_json() for name, part in parts.items() if part is not None and part.log.rows}

    def _prefill(
        self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, scale: float | None
    ) -> Served | str:
        settings = self.settings.prefill
        if self.prefill is None:
            own = replace(settings, seed=settings.seed + self.number)
            self.prefill = AuditedPrefill(query.shape[1], own, query.device)
        if self.decode is not None:
            self.decode.begin()
        attended = self.prefill.attend(query, key, value, scale=scale, starts=starts)
        return _served("prefill", attended) if attended else "attention spread wide at prefill"

    def _certified(
        self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, scale: float | None, eps: float
    ) -> Served:
        sizes = {"query_block": self.settings.prefill.query_block, "key_block": self.settings.prefill.key_block}
        return _served("prefill", certified_prefill(query, key, value, eps, scale=scale, starts=starts, **sizes))

    def _decode(
        self, query: Tensor, key: Tensor, seen_key: Tensor, seen_value: Tensor, extent: Extent,
        starts: Tensor | None, scale: float | None,
    ) -> Served | str:  # fmt: skip
        chooser = self.page_chooser(query.shape[1], key.shape[1], query.device)
        if chooser is None:
            return "certified mode serves prefill alone"
        layer = self._given.layer() if getattr(self._given, "layer", None) is not None else None
        if layer is None or not _holds(layer, key):
            return "keys that no cache layer holds as they are"
        summary = self._memory.follow(layer, self._given.was_last, key, extent, new=1)
        attended = chooser.attend(query, seen_key, seen_value, summary, scale=scale, starts=starts)
        return _served("decode", attended) if attended else "decode steps that teach, or attention spread wide"


def _holds(layer: Any, key: Tensor) -> bool:
    """Whether a cache's layer holds these keys themselves, and not a latent they are made of."""
    held = getattr(layer, "keys", None)
    return isinstance(held, Tensor) and held.data_ptr() == key.data_ptr() and held.shape[-1] == key.shape[-1]


def _starts(extent: Extent, device: torch.device) -> Tensor | None:
    return torch.tensor(extent.starts, dtype=torch.int32, device=device) if any(extent.starts) else None
