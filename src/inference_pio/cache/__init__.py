"""The KV cache: pages of 64 tokens a layer, as they are or as codes, served to transformers as one of its caches."""

from inference_pio.cache.coded_cache import CodedCache
from inference_pio.cache.coded_layer import CodedLayer
from inference_pio.cache.host_cache import HostCache
from inference_pio.cache.host_layer import HostLayer
from inference_pio.cache.kv_format import KV_FORMATS
from inference_pio.cache.paged_cache import PagedCache
from inference_pio.cache.paged_layer import PagedLayer
from inference_pio.cache.span import Span
from inference_pio.cache.store import Store

__all__ = [
    "KV_FORMATS",
    "CodedCache",
    "CodedLayer",
    "HostCache",
    "HostLayer",
    "PagedCache",
    "PagedLayer",
    "Span",
    "Store",
]
