"""The one KV cache: token-major pages of 64 a layer, served to transformers as one of its caches."""

from inference_pio.cache.paged_cache import PagedCache
from inference_pio.cache.paged_layer import PagedLayer
from inference_pio.cache.span import Span
from inference_pio.cache.store import Store

__all__ = ["PagedCache", "PagedLayer", "Span", "Store"]
