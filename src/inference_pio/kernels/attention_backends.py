"""The backends of exact attention by name: what each lacks, told before it runs, and one call that runs any of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from inference_pio.compat import why_no_inductor
from inference_pio.kernels.attention import KERNELS
from inference_pio.kernels.attention_choice import (
    CAUSAL,
    CUDNN,
    DECODING,
    EFFICIENT,
    FLASH,
    FLEX,
    FUSED,
    READ_A_MASK,
    TRITON,
    WHOLE,
    Phase,
)
from inference_pio.kernels.triton.attention_support import supports
from inference_pio.kernels.triton.launch import choose_decode_launch, device_limits

BACKENDS = (FUSED, CUDNN, FLASH, EFFICIENT, FLEX, TRITON)
HALF = (torch.bfloat16, torch.float16)
FLASH_PHASES = frozenset({*WHOLE, Phase.CHUNK, Phase.DECODE, Phase.VISION})


@dataclass(frozen=True)
class HeadShape:
    """Heads, the heads of keys that they share, and the widths of keys and of values."""

    heads: int
    key_heads: int
    head_dim: int
    value_dim: int

    def with_key_heads(self, key_heads: int) -> HeadShape:
        """As many queries to a key head, but another number of these."""
        return HeadShape(self.heads // self.key_heads * key_heads, key_heads, self.head_dim, self.value_dim)


def capability_of(device: torch.device) -> int:
    """An NVIDIA GPU's compute capability, 90 for 9.0; 0 for every other device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def lacks(backend: str, phase: Phase, shape: HeadShape, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a backend cannot serve a phase, told without running it; None if it might."""
    if backend == FUSED:
        return None
    if backend == TRITON:
        return _triton_lacks(phase, shape, dtype, device)
    if backend == FLEX:
        return why_no_inductor(device.type) or (None if phase in CAUSAL else "it is used for causal prefill alone")
    if (capability := capability_of(device)) == 0:
        return f"it needs an NVIDIA GPU, and the model is on {device.type}"
    if backend == FLASH and phase not in FLASH_PHASES:
        return "it takes no mask"
    if backend in (FLASH, CUDNN) and dtype not in HALF:
        return f"it has no kernel for {str(dtype).removeprefix('torch.')}"
    if backend in (FLASH, CUDNN) and capability < 80:
        return f"it needs compute capability 8.0, and this GPU has {capability / 10}"
    return _width_lacks(backend, shape, dtype)


def _width_lacks(backend: str, shape: HeadShape, dtype: torch.dtype) -> str | None:
    widths, step = (shape.head_dim, shape.value_dim), 8 if dtype in HALF else 4
    if any(width % step for width in widths):
        return f"it wants widths that are multiples of {step}, and these heads have {widths[0]} and {widths[1]}"
    if backend == EFFICIENT:
        return None
    if widths[0] != widths[1]:
        return f"it wants keys and values of one width, and these have {widths[0]} and {widths[1]}"
    return f"it ends at heads of 256, and these have {widths[0]}" if widths[0] > 256 else None


def _triton_lacks(phase, shape, dtype, device):
    if phase is Phase.MASKED_DECODE:
        return "it decodes with starts and lengths, and no other mask"
    with torch.device(device):
        query = torch.empty(1, shape.heads, 1, shape.head_dim, dtype=dtype)
        key = torch.empty(1, shape.key_heads, 1, shape.head_dim, dtype=dtype)
        value = torch.empty(1, shape.key_heads, 1, shape.value_dim, dtype=dtype)
    if shape.head_dim != shape.value_dim:
        return f"it wants keys and values of one width, and these have {shape.head_dim} and {shape.value_dim}"
    return supports(query, key, value).said or None


def run(
    backend: str, phase: Phase, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *,
    mask: torch.Tensor | None = None, starts: torch.Tensor | None = None, ends: torch.Tensor | None = None,
    scale: float | None = None, dropout: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Attention `[B, H, S, D]` of one phase through a backend that does not lack it.

    Keys that nobody sees at the end are cut off already, unless `ends` says where; kernels without starts and ends read
    `mask`, which says the same.
    """
    if backend == TRITON:
        return _triton(phase, query, key, value, mask, starts, ends, scale)
    if backend == FLEX:
        return _flex(query, key, value, starts, scale)
    causal = phase in CAUSAL and (backend == FLASH or mask is None)
    return KERNELS[backend](query, key, value, mask, causal=causal, scale=scale, dropout=dropout)


@functools.cache  # importing, though it was done before, takes a microsecond of each layer
def _flash():
    from inference_pio.kernels.triton.flash import flash_attention

    return flash_attention


def _triton(phase, query, key, value, mask, starts, ends, scale):
    if phase in READ_A_MASK:
        return _flash()(query, key, value, causal=False, mask=mask, scale=scale)
    if phase not in DECODING:
        return _flash()(query, key, value, causal=phase in CAUSAL, starts=starts, scale=scale)
    from inference_pio.kernels.triton.decode import decode_attention

    batch, key_heads, capacity, width = key.shape
    # Rounded up, so that a cache that grows meets few numbers of splits: each is a kernel to compile.
    launch = choose_decode_launch(device_limits(key.device), batch, key_heads, width, 1 << (capacity - 1).bit_length())
    out = decode_attention(
        query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2),
        _length(key.device, capacity) if ends is None else ends, starts, scale=scale, launch=launch,
    )  # fmt: skip
    return out[:, :, None]


def _length(device, length):
    """A length on the device, without waiting for it; one serves all layers, unless a graph is being captured."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.full((1,), length, dtype=torch.int32, device=device)
    return _kept_length(device, length)


@functools.lru_cache(maxsize=8)
def _kept_length(device, length):
    with torch.inference_mode(False):
        return torch.full((1,), length, dtype=torch.int32, device=device)


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)  # else the ninth length would run uncompiled


def _flex(query, key, value, starts, scale):
    from torch.nn.attention.flex_attention import create_block_mask

    queries, keys = query.shape[2], key.shape[2]

    def seen(row, head, place, other):
        causal = other <= place + keys - queries
        return causal if starts is None else causal & (other >= starts[row])

    rows = None if starts is None else query.shape[0]
    blocks = create_block_mask(seen, rows, None, queries, keys, device=query.device)
    grouped = key.shape[1] != query.shape[1]
    return _compiled_flex()(query, key, value, block_mask=blocks, scale=scale, enable_gqa=grouped)
