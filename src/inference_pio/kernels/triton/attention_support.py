"""Which calls of attention the Triton kernels serve, and in words why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton.launch import HEAD_DIMS, LATENT_WIDTHS, PAGE, ROPE_WIDTHS
from inference_pio.kernels.triton.row_support import supports_rotary_store
from inference_pio.kernels.triton.support import (
    DTYPES,
    ELEMENTWISE_DTYPES,
    YES,
    Cause,
    Support,
    sizes_of,
    supports_device,
)

if TYPE_CHECKING:  # its module brings torch's int8 operators, and asking here loads little
    from inference_pio.kernels.coded_decode import CodedCacheView

MASK_DTYPES = (torch.bool, *ELEMENTWISE_DTYPES)
MOST_SHARING = 64
MOST_TURNED = 4096
"""Numbers of the queries of one key head that a program turns, holds and attends with: more of them spill."""


def supports(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> Support:
    """Whether the flash kernel serves `[B, H, S, D]` over `[B, key heads, L, D]`, with a mask that expands to
    `[B, H, S, L]`."""
    if dropout:
        return Support(Cause.DROPOUT, f"it has no dropout ({dropout} was asked for)")
    if query.dim() != 4 or key.shape != value.shape or key.shape[0] != query.shape[0] or query.shape[2] == 0:
        return _shapes(query, key, value)
    served = _common(query, key, value, query.shape[1], key.shape[1])
    return served if mask is None or not served else _masked(mask, query, key)


def supports_decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> Support:
    """Whether the decode kernel serves `[B, H, D]` over `[B, capacity, key heads, D]`, or over pages of a pool."""
    batch = query.shape[0]
    if query.dim() != 3 or key.dim() != 4 or key.shape != value.shape or (table is None and key.shape[0] != batch):
        return _shapes(query, key, value)
    counted = _counted(batch, key, lengths, starts, table)
    return _common(query, key, value, query.shape[1], key.shape[2]) if counted else counted


def supports_latent_decode(
    query: torch.Tensor,
    query_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> Support:
    """Whether the latent decode kernel serves absorbed queries `[B, H, C]` and `[B, H, R]` over their cache."""
    batch = query.shape[0]
    fits = query.dim() == latent.dim() == 3 and query.shape[:2] == query_rope.shape[:2]
    if not fits or latent.shape[:2] != rope.shape[:2] or (table is None and latent.shape[0] != batch):
        return _shapes(query, latent, rope)
    counted = _counted(batch, latent, lengths, starts, table)
    if not counted:
        return counted
    if query_rope.dtype != query.dtype:
        return Support(Cause.DTYPE, f"queries of {query.dtype} and {query_rope.dtype} do not belong together")
    return _common(query, latent, latent, 1, 1, LATENT_WIDTHS) and _common(query_rope, rope, rope, 1, 1, ROPE_WIDTHS)


def supports_coded_decode(
    query: torch.Tensor, cache: CodedCacheView, lengths: torch.Tensor, starts: torch.Tensor | None = None
) -> Support:
    """Whether the decode kernel for int8 codes serves `[B, H, D]` over pages and recent tokens."""
    codes, recent = cache.keys[0], cache.recent_keys
    shape = (*codes.shape[:2], recent.shape[2], query.shape[-1])
    if query.dim() != 3 or codes.dim() != 5 or len(query) != len(codes) or codes.shape[3:] != (PAGE, query.shape[-1]):
        return _shapes(query, codes, cache.values[0])
    if cache.values[0].shape != codes.shape or recent.shape != shape or cache.recent_values.shape != shape:
        return _shapes(recent, cache.recent_values, cache.values[0])
    forms = (cache.key_form.bits, cache.key_form.group, cache.key_form.tokens, cache.value_form.bits)
    sharing = cache.value_form.group
    if forms != (8, 0, PAGE, 8) or cache.key_form.floating or cache.value_form.floating or sharing & (sharing - 1):
        return Support(
            Cause.DTYPE, "it reads int8 codes, of keys by channel and of values by 16, 32 or 64 of a token's"
        )
    parts = (*cache.keys, *cache.values)
    if not all(part.is_contiguous() for part in parts) or recent.stride() != cache.recent_values.stride():
        return Support(Cause.LAYOUT, "pages lie side by side, and recent keys as recent values do")
    if any(part.device != query.device for part in (*parts, cache.pages)):
        return Support(Cause.DEVICE, "queries and codes are on different devices")
    counted = _counted(len(query), recent, lengths, starts, None)
    if counted and (cache.pages.dtype != torch.int32 or cache.pages.numel() != 1):
        return Support(Cause.DTYPE, "the number of pages is one int32")
    return _common(query, recent, cache.recent_values, query.shape[1], codes.shape[1]) if counted else counted


def supports_page_summary(
    summary: PageSummary, keys: torch.Tensor, length: torch.Tensor, starts: torch.Tensor | None = None
) -> Support:
    """Whether the page summary kernel serves a cache `[B, capacity, key heads, D]`."""
    batch, capacity, heads, width = keys.shape
    tensors = (summary.minimum, summary.maximum, summary.mean)
    shape = (batch, heads, -(-capacity // PAGE), width)
    if any(tensor.shape != shape or not tensor.is_contiguous() for tensor in tensors) or keys.stride(-1) != 1:
        return Support(Cause.LAYOUT, f"a summary of shape {shape}, side by side, goes with keys {tuple(keys.shape)}")
    if length.numel() != 1 or (starts is not None and starts.numel() != batch):
        return Support(Cause.SHAPE, f"one length and {batch} starts are needed")
    if any(counted is not None and counted.dtype != torch.int32 for counted in (length, starts)):
        return Support(Cause.DTYPE, "length and starts are int32")
    if keys.dtype not in ELEMENTWISE_DTYPES:
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, and not {keys.dtype}")
    return supports_device(keys.device)


def supports_rotated_decode(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None,
    heads: int,
    norms: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> Support:
    """Whether one launch rotates, stores and attends for `[M, (heads + 2 key heads) * D]`."""
    turns = supports_rotary_store(qkv, keys, values, cos, sin, positions, lengths, heads, norms)
    if not turns:
        return turns
    query = qkv[:, : heads * keys.shape[-1]].unflatten(-1, (heads, -1))
    attends, (key_heads, width) = supports_decode(query, keys, values, lengths, starts), keys.shape[2:]
    if attends and heads // key_heads * width > MOST_TURNED:
        sharing = f"{heads // key_heads} heads of {width} share a key head"
        return Support(Cause.SHAPE, f"{sharing}, and a program turns at most {MOST_TURNED} numbers of them")
    return attends


def _shapes(query, key, value):
    return Support(Cause.SHAPE, f"query, key and value of shapes {sizes_of(query, key, value)} do not belong together")


def _masked(mask, query, key):
    """Whether a mask belongs to checked queries and keys, and the kernel reads its kind."""
    scores = (*query.shape[:3], key.shape[2])
    if mask.dtype not in MASK_DTYPES:
        return Support(Cause.MASK, f"it reads boolean and additive masks in 16 or 32 bits, and not {mask.dtype}")
    wide = (1,) * (4 - mask.dim()) + tuple(mask.shape)
    if mask.dim() > 4 or any(size not in (1, whole) for size, whole in zip(wide, scores, strict=True)):
        return Support(Cause.MASK, f"a mask {tuple(mask.shape)} does not belong to scores {scores}")
    if mask.dim() == 0 or mask.shape[-1] != scores[3] or (mask.stride(-1) != 1 and scores[3] != 1):
        return Support(Cause.MASK, "what a mask says of neighbouring keys does not lie side by side")
    if mask.device != query.device:
        return Support(Cause.DEVICE, "query and mask are on different devices")
    if torch.is_grad_enabled() and mask.requires_grad:
        return Support(Cause.GRADIENT, "it has no backward pass")
    return YES


def _counted(batch, cached, lengths, starts, table):
    """Whether lengths, starts and a table of pages belong to a batch."""
    if table is not None and (cached.shape[1] != PAGE or table.shape[0] != batch or table.stride(-1) != 1):
        return Support(Cause.LAYOUT, f"a pool has pages of {PAGE} tokens and a table of one row for each of the batch")
    if lengths.numel() not in (1, batch) or (starts is not None and starts.numel() != batch):
        return Support(Cause.SHAPE, f"{lengths.numel()} lengths do not fit a batch of {batch}")
    if any(counted is not None and counted.dtype != torch.int32 for counted in (lengths, starts, table)):
        return Support(Cause.DTYPE, "lengths, starts and page tables are int32")
    return YES


def _common(query, key, value, heads, key_heads, known=HEAD_DIMS):
    tensors = (query, key, value)
    if not (machine := supports_device(query.device)):
        return machine
    if any(tensor.device != query.device for tensor in tensors):
        return Support(Cause.DEVICE, "query, key and value are on different devices")
    if query.dtype not in DTYPES or any(tensor.dtype != query.dtype for tensor in tensors):
        return Support(Cause.DTYPE, f"it is for bfloat16 or float16, all alike, and not {query.dtype}")
    if query.shape[-1] not in known or key.shape[-1] != query.shape[-1]:
        widths = f"{query.shape[-1]} and {key.shape[-1]}" if key.shape[-1] != query.shape[-1] else query.shape[-1]
        return Support(Cause.HEAD_DIM, f"heads are {widths} wide, and it knows {', '.join(map(str, known))}")
    if key_heads == 0 or heads % key_heads or heads // key_heads > MOST_SHARING:
        return Support(Cause.SHAPE, f"{heads} query heads cannot share {key_heads} key heads")
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return Support(Cause.LAYOUT, "the elements of a head do not lie side by side")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return Support(Cause.GRADIENT, "it has no backward pass")
    return YES
