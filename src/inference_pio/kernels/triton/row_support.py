"""Which rows the Triton kernels of products, norms, rotations and choices serve, and in words why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
    from inference_pio.kernels.gemv import GemvParts

MOST_ROWS = 8
"""Rows that are multiplied at a time without the matrix units: from there on torch's products win."""


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
    return supports_device(x.device)


def supports_elementwise(*given: torch.Tensor | None) -> Support:
    """Whether the kernels of norms, rotations and gates serve tensors that are worked on together."""
    tensors = [tensor for tensor in given if tensor is not None]
    first = tensors[0]
    if not (machine := supports_device(first.device)):
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
    if not (machine := supports_device(codes.device)):
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
    if not (machine := supports_device(logits.device)):
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
        return Support(Cause.SHAPE, f"{sizes_of(query, key, cos, sin)} do not belong together")
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
        return Support(Cause.SHAPE, f"{sizes_of(qkv, keys, values, cos, sin)} do not belong together")
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


def supports_rows(
    rows: torch.Tensor, *weights: torch.Tensor, codes: bool = False
) -> Support:  # fmt: skip
    """Whether the kernels of a decode step serve few `rows` [M, in] with `weights`, each of which is contiguous;
    `codes`: the weights may be codes."""
    if not (machine := supports_device(rows.device)):
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
