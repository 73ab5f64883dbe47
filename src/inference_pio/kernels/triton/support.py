"""What the Triton kernels can serve, and in words why not: asked before anything is launched."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch

from inference_pio.compat import has_triton, triton_interprets
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton.launch import HEAD_DIMS, LATENT_WIDTHS, PAGE, ROPE_WIDTHS, device_limits

if TYPE_CHECKING:  # its module brings torch's int8 operators, and asking here loads little
    from inference_pio.kernels.coded_decode import CodedCacheView
    from inference_pio.kernels.gemv import GemvParts

DTYPES = (torch.bfloat16, torch.float16)
ELEMENTWISE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MASK_DTYPES = (torch.bool, *ELEMENTWISE_DTYPES)
OLDEST = 80
MOST_SHARING = 64
MOST_TURNED = 4096
"""Numbers of the queries of one key head that a program turns, holds and attends with: more of them spill."""
MOST_ROWS = 8
"""Rows that are multiplied at a time without the matrix units: from there on torch's products win."""


class Cause(StrEnum):
    """Why a kernel cannot serve."""

    NO_TRITON = "no_triton"
    DEVICE = "device"
    DTYPE = "dtype"
    SHAPE = "shape"
    HEAD_DIM = "head_dim"
    LAYOUT = "layout"
    MASK = "mask"
    DROPOUT = "dropout"
    GRADIENT = "gradient"


@dataclass(frozen=True)
class Support:
    """True where a kernel serves; else the cause, and what to tell the user.

    >>> bool(Support()), bool(Support(Cause.MASK, "it takes no mask"))
    (True, False)
    """

    cause: Cause | None = None
    said: str = ""

    def __bool__(self) -> bool:
        return self.cause is None


YES = Support()


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


def supports_gemv(
    x: torch.Tensor,
    parts: GemvParts,
    norm_weight: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> Support:
    """Whether the kernel for a few rows serves a checked call of `kernels.gemv.gemv`."""
    if parts.rows > MOST_ROWS:
        return Support(Cause.SHAPE, f"it is for 1 to {MOST_ROWS} rows, and x has {parts.rows}")
    beside = [tensor for tensor in (norm_weight, residual, out) if tensor is not None]
    vectors = [*(parts.scales or ()), *(bias for bias in parts.biases or () if bias is not None)]
    tensors = [x, *parts.weights, *beside, *vectors]
    if any(tensor.dtype not in (*DTYPES, torch.float32) for tensor in (x, *beside, *vectors)):
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, and x is {x.dtype}")
    if parts.group and any(tensor.dtype is not torch.int32 for tensor in parts.weights):
        return Support(Cause.LAYOUT, "codes in groups lie as files or a CPU hold them: move their module to a GPU")
    if parts.group and any(scale.dtype is not torch.bfloat16 or scale.stride(1) != 2 for scale in parts.scales or ()):
        return Support(Cause.LAYOUT, "steps and middles of groups are not pairs of bfloat16 that lie side by side")
    for alike in (parts.scales or (), [bias for bias in parts.biases or () if bias is not None]):
        if any(vector.dtype != alike[0].dtype for vector in alike):
            return Support(Cause.DTYPE, "scales, or biases, of several dtypes were given")
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] != 1 for tensor in tensors):
        return Support(Cause.LAYOUT, "the elements of a row do not lie side by side")
    if any(tensor.device != x.device for tensor in tensors):
        return Support(Cause.DEVICE, "its tensors are on different devices")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return Support(Cause.GRADIENT, "it has no backward pass")
    return _machine(x)


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
    return _machine(keys)


def supports_elementwise(*given: torch.Tensor | None) -> Support:
    """Whether the kernels of norms, rotations and gates serve tensors that are worked on together."""
    tensors = [tensor for tensor in given if tensor is not None]
    first = tensors[0]
    if not (machine := _machine(first)):
        return machine
    if any(tensor.device != first.device for tensor in tensors):
        return Support(Cause.DEVICE, "its tensors are on different devices")
    if first.dtype not in ELEMENTWISE_DTYPES or any(tensor.dtype != first.dtype for tensor in tensors):
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, all alike, and not {first.dtype}")
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return Support(Cause.LAYOUT, "the elements of a row do not lie side by side")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return Support(Cause.GRADIENT, "it has no backward pass")
    return YES


def supports_row_lookup(ids: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Support:
    """Whether the kernel looks rows up in codes `[N, K]` with scales `[N]`, for ids `[M]`."""
    if not (machine := _machine(codes)):
        return machine
    if len({ids.device, codes.device, scale.device}) > 1:
        return Support(Cause.DEVICE, "its tensors are on different devices")
    if codes.dtype not in (torch.int8, torch.uint8) or dtype not in ELEMENTWISE_DTYPES:
        return Support(Cause.DTYPE, f"it makes bfloat16, float16 or float32 of codes of a byte, not {dtype}")
    if (ids.dim(), codes.dim(), scale.dim()) != (1, 2, 1) or ids.dtype not in (torch.int32, torch.int64):
        return Support(Cause.SHAPE, f"it takes ids [M] for codes [N, K], and ids are {tuple(ids.shape)} ({ids.dtype})")
    if codes.stride(1) != 1 or scale.stride(0) != 1 or ids.stride(0) != 1:
        return Support(Cause.LAYOUT, "the elements of a row do not lie side by side")
    return YES


def supports_next_token(
    logits: torch.Tensor,
    tokens: tuple[torch.Tensor, ...],
    counts: tuple[torch.Tensor, ...],
    entered: torch.Tensor | None = None,
) -> Support:
    """Whether the kernel chooses of logits `[M, V]` and counts: `tokens` `[M]` each, a count a row, and one for all."""
    if not (machine := _machine(logits)):
        return machine
    if logits.dim() != 2 or not logits.numel():
        return Support(Cause.SHAPE, f"it takes logits [M, V], and these are {tuple(logits.shape)}")
    counted = [*counts, *([] if entered is None else [entered])]
    if len({tensor.device for tensor in (logits, *tokens, *counted)}) > 1:
        return Support(Cause.DEVICE, "its tensors are on different devices")
    if logits.dtype is not torch.float32:
        return Support(Cause.DTYPE, f"it chooses of float32, and logits are {logits.dtype}")
    kinds = [*((tensor.dtype, torch.int64) for tensor in tokens), *((tensor.dtype, torch.int32) for tensor in counted)]
    if any(found is not meant for found, meant in kinds):
        return Support(Cause.DTYPE, "tokens are int64 and counts int32")
    rows = (logits.shape[0],)
    shapes = [(tuple(tensor.shape), rows) for tensor in (*tokens, counts[0])]
    shapes += [(tuple(counts[1].shape), (1,)), *([] if entered is None else [(tuple(entered.shape), (2,))])]
    if any(found != meant for found, meant in shapes):
        return Support(Cause.SHAPE, f"it writes a token a row, [{rows[0]}], and counts of [1] and [2]")
    if logits.stride(1) != 1 or any(tensor.stride(0) != 1 for tensor in (tokens[0], *counted)):
        return Support(Cause.LAYOUT, "the elements of a row do not lie side by side")
    return YES


def supports_rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norms: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> Support:
    """Whether the rotary kernel serves `[B, S, heads, D]` with `cos` and `sin` `[B or 1, S, R]`."""
    width, turned = query.shape[-1], cos.shape[-1]
    fits = query.dim() == key.dim() == 4 and query.shape[:2] == key.shape[:2] and key.shape[-1] == width
    if not fits or cos.shape != sin.shape or cos.shape[:2] not in (query.shape[:2], (1, query.shape[1])):
        return Support(Cause.SHAPE, f"{_sizes(query, key, cos, sin)} do not belong together")
    if turned > width or turned % 2 or any(norm is not None and norm.shape != (width,) for norm in norms):
        return Support(Cause.SHAPE, f"heads of {width} cannot be normed or have {turned} columns turned like that")
    return supports_elementwise(query, key, cos, sin, *norms)


def supports_rotary_store(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    heads: int,
    norms: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> Support:
    """Whether the kernel that rotates and stores one token a row serves `[M, (heads + 2 key heads) * D]`."""
    rows, (_, _, key_heads, width) = len(qkv), keys.shape
    fits = keys.shape == values.shape and len(keys) == rows and qkv.shape[1:] == ((heads + 2 * key_heads) * width,)
    if not fits or cos.shape != sin.shape or cos.dim() != 2:
        return Support(Cause.SHAPE, f"{_sizes(qkv, keys, values, cos, sin)} do not belong together")
    turned = cos.shape[-1]
    if turned > width or turned % 2 or any(norm is not None and norm.shape != (width,) for norm in norms):
        return Support(Cause.SHAPE, f"heads of {width} cannot be normed or have {turned} columns turned like that")
    if positions.numel() != rows or lengths.numel() not in (1, rows):
        return Support(
            Cause.SHAPE, f"{positions.numel()} positions and {lengths.numel()} lengths do not fit {rows} rows"
        )
    if positions.dtype != torch.int32 or lengths.dtype != torch.int32:
        return Support(Cause.DTYPE, "positions and lengths are int32")
    return supports_elementwise(qkv, keys, values, cos, sin, *norms)


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


def supports_rows(
    rows: torch.Tensor, *weights: torch.Tensor, codes: bool = False
) -> Support:  # fmt: skip
    """Whether the kernels of a decode step serve few `rows` [M, in] with `weights`, each of which is contiguous;
    `codes`: the weights may be codes."""
    if not (machine := _machine(rows)):
        return machine
    if any(weight.device != rows.device for weight in weights):
        return Support(Cause.DEVICE, "rows and weights are on different devices")
    known = (rows.dtype, torch.int8, torch.uint8, torch.int32) if codes else (rows.dtype,)
    if rows.dtype not in (*DTYPES, torch.float32) or any(weight.dtype not in known for weight in weights):
        found = ", ".join(str(dtype) for dtype in {weight.dtype for weight in weights})
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, all alike, not {rows.dtype} and {found}")
    if rows.dim() != 2 or rows.stride(-1) != 1 or not all(weight.is_contiguous() for weight in weights):
        return Support(Cause.LAYOUT, "the elements of a row, or of a weight, do not lie side by side")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (rows, *weights)):
        return Support(Cause.GRADIENT, "it has no backward pass")
    return YES


def require(support: Support) -> None:
    """Raise InvalidSetting, with the reason, where a kernel does not serve."""
    if not support:
        raise InvalidSetting(f"the Triton kernel does not serve here: {support.said}.")


def supports_device(device: torch.device) -> Support:
    """Whether a device can run kernels at all."""
    if not has_triton():
        return Support(Cause.NO_TRITON, "the package triton is not installed (it is made for Linux alone)")
    machine = _device(device)
    return YES if machine is None else Support(Cause.DEVICE, machine)


def _shapes(query, key, value):
    return Support(Cause.SHAPE, f"query, key and value of shapes {_sizes(query, key, value)} do not belong together")


def _sizes(*tensors):
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


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
    if not (machine := _machine(query)):
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


def _machine(tensor):
    return supports_device(tensor.device)


def _device(device):
    """Why a device cannot run the kernels, or None."""
    if triton_interprets():
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, and the tensors are on {device.type}"
    capability = device_limits(device).capability
    if capability < OLDEST:
        return f"it needs compute capability {OLDEST / 10}, and {device} has {capability / 10}"
    return None
