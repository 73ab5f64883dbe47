"""Attention of many queries in one pass over the keys, dense or over lists of key blocks; no score matrix is held.

The plain truth is `kernels.attention.naive_attention`, and `kernels.block_sparse` for lists.
"""

from __future__ import annotations

from math import log2

import torch

import triton
import triton.language as tl
from inference_pio.compat import has_warp_roles, triton_interprets
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.triton.attention_support import supports
from inference_pio.kernels.triton.flash_launch import FlashLaunch, RolesLaunch, choose_flash_launch, choose_roles_launch
from inference_pio.kernels.triton.flash_steps import HIDDEN, LOG2_E, rows_of, visit
from inference_pio.kernels.triton.kept_calls import KeptCalls, form_of, serve_again
from inference_pio.kernels.triton.launch import device_limits, on_device
from inference_pio.kernels.triton.mask_tiles import tiles_of
from inference_pio.kernels.triton.support import require
from triton.tools.tensor_descriptor import TensorDescriptor

KEPT = KeptCalls()
"""Calls of the kernel whose warps take roles."""


@triton.jit(
    do_not_specialize=["heads", "key_heads", "queries", "keys", "list_length", "list_batch", "list_head"],
    do_not_specialize_on_alignment=["starts", "ends", "counts", "indices", "lse", "skipped"],
)  # one compilation serves all lengths
def flash_kernel(
    query, key, value, out, lse, starts, ends, counts, indices,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    out_batch, out_head, out_row, heads, key_heads, queries, keys, list_length, scale, skipped, margin,
    mask, mask_batch, mask_head, mask_row, list_batch, list_head,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_STARTS: tl.constexpr, HAS_ENDS: tl.constexpr, LISTED: tl.constexpr, PARTS: tl.constexpr,
    HAS_LSE: tl.constexpr, DESCRIBED: tl.constexpr, CERTIFIED: tl.constexpr, COUNTED: tl.constexpr,
    READ: tl.constexpr, ADDED: tl.constexpr, LEAST: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    # Heads that share keys run side by side, and long rows start first: the last ones to run are short.
    row_blocks = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    row_block = row_blocks - 1 - (program // GROUP) % row_blocks
    pair = program // (GROUP * row_blocks)
    batch, key_head_index = pair // key_heads, pair % key_heads
    head = key_head_index * GROUP + program % GROUP
    first_row = row_block * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    offset = keys - queries  # the last query stands at the last key
    seen_from, seen_to = 0, keys
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    if HAS_ENDS:
        seen_to = tl.minimum(tl.load(ends + batch), keys)

    rows_of_query = rows_of(
        query, batch, head, first_row, queries, query_batch, query_head, query_row, BLOCK_M, WIDTH, True, False
    )
    if INTERPRETED:
        rows_of_query = rows_of_query.to(tl.float32)
    summed = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    scale2 = scale * LOG2_E

    # Steps [begin, inner) and [rest, finish) hold a key that some row must not see; between them no mask is needed.
    GUARDED: tl.constexpr = HAS_STARTS or HAS_ENDS
    blocks, mask_rows = indices, rows
    if READ:  # tiles that hide nothing are listed first, and none that hides everything
        row = batch.to(tl.int64) * list_batch + head.to(tl.int64) * list_head + row_block
        blocks = indices + row * list_length
        begin, inner = 0, 0
        rest = tl.load(counts + 2 * row)
        finish = tl.load(counts + 2 * row + 1)
        mask += batch.to(tl.int64) * mask_batch + head.to(tl.int64) * mask_head + first_row.to(tl.int64) * mask_row
        mask_rows = (tl.minimum(rows, queries - 1) - first_row) * mask_row
    elif LISTED:
        row = (batch * heads + head).to(tl.int64) * row_blocks + row_block
        blocks = indices + row * list_length
        finish = tl.load(counts + row) * PARTS
        begin, inner = 0, 0
        if HAS_STARTS:
            inner = tl.minimum(PARTS, finish)
        CROSSING: tl.constexpr = (BLOCK_M + 2 * PARTS * BLOCK_N - 3) // (PARTS * BLOCK_N) if CAUSAL else 1
        rest = tl.maximum(inner, finish - CROSSING * PARTS)
    else:
        until, free = seen_to, seen_to
        if CAUSAL:
            until = tl.minimum(seen_to, offset + first_row + BLOCK_M)
            free = tl.minimum(seen_to, offset + first_row + 1)
        finish = tl.cdiv(tl.maximum(until, 0), BLOCK_N)
        begin, inner = 0, 0
        if HAS_STARTS:
            begin = tl.minimum(seen_from // BLOCK_N, finish)
            inner = tl.minimum(tl.cdiv(seen_from, BLOCK_N), finish)
        rest = tl.maximum(inner, free // BLOCK_N)
    if CERTIFIED:  # of so many keys, each may weigh that share of the promised one
        most = keys
        if CAUSAL:
            most = tl.minimum(keys, offset + first_row + BLOCK_M)
        margin -= tl.log2(tl.maximum(most, 1).to(tl.float32))
    left_out = 0
    mixed_scale = LOG2_E if ADDED else scale2  # there an additive mask joins scores that are scaled
    for turn in tl.static_range(2):  # those without a mask first; a certificate wants the queries' own steps first
        first, last = inner, rest
        if (turn == 1) != CERTIFIED:
            first, last = begin, finish - (rest - inner)
        summed, total, peak, left_out = visit(
            summed, total, peak, rows_of_query, offset + rows, key, value, blocks, batch, key_head_index,
            first, last, inner, rest - inner, seen_from, seen_to, mixed_scale if turn == 1 else scale2,
            key_batch, key_head, key_row, value_batch, value_head, value_row, rows < queries, margin, left_out,
            mask, mask_rows, scale, BLOCK_N, WIDTH, PARTS, (turn == 1) != CERTIFIED, CAUSAL, GUARDED, LISTED or READ,
            DESCRIBED, CERTIFIED, READ, ADDED, LEAST, INTERPRETED,
        )  # fmt: skip
    if COUNTED:
        tl.atomic_add(skipped, left_out)

    blind = peak < mixed_scale * (0.5 * HIDDEN)  # no key is visible: zero, not an average of hidden keys
    summed = tl.where(blind[:, None], 0.0, summed / total[:, None])
    columns = tl.arange(0, WIDTH)
    base = out + batch.to(tl.int64) * out_batch + head.to(tl.int64) * out_head + first_row.to(tl.int64) * out_row
    places = base + tl.arange(0, BLOCK_M)[:, None] * out_row + columns[None, :]
    tl.store(places, summed.to(out.dtype.element_ty), mask=(rows < queries)[:, None])
    if HAS_LSE:
        natural = tl.where(blind, float("-inf"), (peak + tl.log2(total)) / LOG2_E)
        tl.store(lse + (batch * heads + head).to(tl.int64) * queries + rows, natural, mask=rows < queries)


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    starts: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
    lists: BlockList | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    certified: float | None = None,
    skipped: torch.Tensor | None = None,
    launch: FlashLaunch | None = None,
) -> torch.Tensor:
    """`query` [B, H, S, D] over `key`, `value` [B, key heads, L, D]: [B, H, S, D], by default with the heads of a token
    side by side in memory.

    If `causal`, the last query stands at the last key. Row b sees keys `starts[b]` to `ends[b]` (int32 on the device)
    alone; of those, given `lists`, the ones in its listed blocks. A query that sees no key gives zeros. `lse` float32
    [B, H, S] is filled with the log of each query's sum. Raises InvalidSetting for tensors that `supports` refuses.

    `mask`, in the place of all these and with `causal=False`: boolean, or added to the scores, of a shape that expands
    to [B, H, S, L]. An additive one hides below `kernels.mask_tiles.least_of` its dtype. Tiles that it hides are not
    computed; which these are is found out once for a mask, and again if it was written to.

    `certified`: leave out tiles that provably hold no more than that share of any query's attention all together
    (`kernels.certified_attention`); their number is added to `skipped`, int32 [1].

    Without a `launch` the kernel is the best that serves here: on Hopper that whose warps take roles
    (`flash_roles`), where neither a mask, a certificate nor `ends` is given.
    """
    plain = launch is ends is mask is certified is None
    form = form_of(query, key, value, out, causal=causal, starts=starts, lists=lists, lse=lse) if plain else ()
    call = KEPT.get(form)
    if call is not None and serve_again(query, key, value, out):
        out = _room_for(query) if out is None else out
        return call(query, key, value, out, scale, starts, lists, lse)
    require(supports(query, key, value, mask))
    if mask is not None and (causal or not (starts is ends is lists is certified is None)):
        raise InvalidSetting("a mask tells everything: give causal=False, and no starts, ends, lists or certified.")
    if certified is not None and not 0.0 < certified < 1.0:
        raise InvalidSetting(f"a share of the attention that may be left out lies between 0 and 1, unlike {certified}.")
    batch, heads, queries, width = query.shape
    key_heads, keys = key.shape[1:3]
    out = _room_for(query) if out is None else out
    roles = roles_launch_for(query, key, value, out, lists, causal=causal, padded=starts is not None) if plain else None
    if roles is not None:
        from inference_pio.kernels.triton.roles_call import RolesCall

        call = RolesCall.of(query, key, value, out, roles, causal=causal, starts=starts, lists=lists, lse=lse)
        KEPT.keep(form, call)
        return call(query, key, value, out, scale, starts, lists, lse)
    scale = width**-0.5 if scale is None else scale
    padded = starts is not None or ends is not None
    launch = launch or launch_for(
        key, value, padded=padded, certified=certified is not None, mask=None if mask is None else mask.dtype
    )
    read = None if mask is None else tiles_of(mask, query, key, launch)
    chosen = lists if read is None else read
    parts = _parts(lists, launch)
    group = heads // key_heads
    limits = {} if launch.registers is None or triton_interprets() else {"maxnreg": launch.registers}
    with on_device(query):
        flash_kernel[(triton.cdiv(queries, launch.query_block) * heads * batch,)](
            query, _described(key, launch), _described(value, launch), out, lse, starts, ends,
            None if chosen is None else chosen.counts, None if chosen is None else chosen.indices,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3],
            heads, key_heads, queries, keys, 0 if chosen is None else chosen.indices.shape[-1],
            scale, skipped, None if certified is None else log2(certified),
            *((None, 0, 0, 0, 0, 0) if read is None else (read.mask, *read.steps)),
            BLOCK_M=launch.query_block, BLOCK_N=launch.key_block, WIDTH=width, GROUP=group, CAUSAL=causal,
            HAS_STARTS=starts is not None, HAS_ENDS=ends is not None, LISTED=lists is not None, PARTS=parts,
            HAS_LSE=lse is not None, DESCRIBED=launch.described, CERTIFIED=certified is not None,
            COUNTED=skipped is not None, READ=read is not None, ADDED=read is not None and read.least is not None,
            LEAST=None if read is None else read.least, INTERPRETED=triton_interprets(),
            num_warps=launch.warps, num_stages=launch.stages, **limits,
        )  # fmt: skip
    return out


def launch_for(
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    padded: bool = False,
    certified: bool = False,
    mask: torch.dtype | None = None,
) -> FlashLaunch:
    """The launch that serves these keys and values, where no other is asked for: lists are made for its blocks."""
    aligned = _aligned(key) and _aligned(value)
    limits = device_limits(key.device)
    return choose_flash_launch(limits, key.shape[-1], aligned=aligned, padded=padded, certified=certified, mask=mask)


def roles_launch_for(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor, lists: BlockList | None = None, *,
    causal: bool = True, padded: bool = False,
) -> RolesLaunch | None:  # fmt: skip
    """The launch of the kernel whose warps take roles, or None where it does not serve: it wants Hopper and a Triton
    that has roles, tensors that the copy engine can address, and, given lists, blocks of its own sizes and no padding.
    Where nothing is hidden from any query it would spill, with heads of 128."""
    limits = device_limits(query.device)
    launch = choose_roles_launch(limits, query.shape[-1]) if has_warp_roles() else None
    if launch is None or out.dtype != query.dtype or not all(_aligned(each) for each in (query, key, value, out)):
        return None
    if lists is None:
        return launch if causal or padded else None
    return launch if not padded and launch.takes_lists(lists.query_block, lists.key_block) else None


def _room_for(query: torch.Tensor) -> torch.Tensor:
    """Room for the result, the heads of a token side by side."""
    batch, heads, queries, width = query.shape
    if query.stride() == (queries * heads * width, width, heads * width, 1):
        return torch.empty_like(query)  # which takes the host half as long
    return query.new_empty(batch, queries, heads, width).transpose(1, 2)


def _described(tensor: torch.Tensor, launch: FlashLaunch) -> torch.Tensor | TensorDescriptor:
    if not launch.described:
        return tensor
    block = [1, 1, launch.key_block, tensor.shape[-1]]
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)


def _aligned(tensor: torch.Tensor) -> bool:
    """Whether the copy engine can address a tensor: every row begins at a multiple of 16 bytes."""
    steps = [step * tensor.element_size() for step in tensor.stride()[:3]]
    return tensor.data_ptr() % 16 == 0 and all(step > 0 and step % 16 == 0 for step in steps)


def _parts(lists: BlockList | None, launch: FlashLaunch) -> int:
    """How many of the kernel's steps one listed block takes."""
    if lists is None:
        return 1
    if lists.query_block != launch.query_block or lists.key_block % launch.key_block:
        raise InvalidSetting(
            f"lists for blocks of {lists.query_block} queries and {lists.key_block} keys do not fit a kernel that "
            f"works on {launch.query_block} and {launch.key_block}: make them for {launch.query_block} queries, and "
            f"a multiple of {launch.key_block} keys."
        )
    return lists.key_block // launch.key_block
