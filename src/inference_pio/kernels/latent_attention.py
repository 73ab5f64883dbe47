"""Attention over a latent cache: expanded to keys and values as it is defined, then absorbed into the queries.

A token is kept as `latent` (C wide) and a rotated key part that all heads share. Expanding makes keys and values of all
heads from it; absorbing moves that product to the queries and the result, so that the cache is read as it is.
"""

from __future__ import annotations

import torch

from inference_pio.compat import bmm_widens
from inference_pio.kernels.attention import naive_attention


def naive_latent_attention(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    up: torch.Tensor,
    lengths: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """`q_nope` [B, H, S, N] and `q_rope` [B, H, S, R] over `latent` [B, L, C] and `k_rope` [B, L, R]: [B, H, S, V].

    `up` [H * (N + V), C] expands a latent. Row b sees tokens `starts[b]` to `lengths[b]` (one length may serve all);
    its S queries stand at their end, and each sees no token after its own. `mask`, boolean or added, is beside that.
    A query that sees nothing gives zeros.
    """
    heads, nope = q_nope.shape[1], q_nope.shape[3]
    if lengths is not None:
        behind = torch.arange(latent.shape[1], device=latent.device)[None, :, None] >= lengths.view(-1, 1, 1)
        latent, k_rope = latent.masked_fill(behind, 0.0), k_rope.masked_fill(behind, 0.0)
    expanded = (latent.float() @ up.float().T).unflatten(-1, (heads, -1)).transpose(1, 2)
    keys = torch.cat((expanded[..., :nope], k_rope.float()[:, None].expand(-1, heads, -1, -1)), -1)
    seen = _seen(q_nope.shape[2], latent, lengths, starts, mask)
    out = naive_attention(torch.cat((q_nope, q_rope), -1), keys, expanded[..., nope:], seen, scale=scale)
    return out.nan_to_num(0.0)


def latent_attention(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    up: torch.Tensor,
    lengths: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """The same, absorbed, in the dtype of the queries; scores and sums are float32. What no query sees must be finite.

    It reads C + R numbers a token for all heads; its arithmetic grows with H * S * C, so it is for few queries.
    """
    batch, heads, queries, _ = q_nope.shape
    scale = (q_nope.shape[3] + q_rope.shape[3]) ** -0.5 if scale is None else scale
    absorbed = absorb_queries(q_nope, up)
    cached = latent if _widens(latent.device.type, latent.dtype) else _wide(latent)  # cast once, for both products
    scores = _product(absorbed.flatten(1, 2), cached.transpose(1, 2))
    scores += _product(q_rope.flatten(1, 2), k_rope.transpose(1, 2))
    scores = scores.mul_(scale).view(batch, heads, queries, -1)
    seen = _seen(queries, latent, lengths, starts, mask)
    if seen is not None and seen.dtype != torch.bool:
        scores = scores + seen
    elif seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    shares = torch.softmax(scores, -1)
    if seen is not None and seen.dtype == torch.bool:  # a query that sees nothing gives zeros, as torch's kernels do
        shares = shares.masked_fill(~seen, 0.0)
    weighted = _product(shares.flatten(1, 2).to(cached.dtype), cached)
    return expand_values(weighted.view(batch, heads, queries, -1).to(q_nope.dtype), up, q_nope.shape[3])


def absorb_queries(q_nope: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Queries [B, H, S, N] as what latents are multiplied with: [B, H, S, C].

    >>> absorb_queries(torch.ones(1, 2, 1, 3), torch.ones(2 * (3 + 4), 5)).shape
    torch.Size([1, 2, 1, 5])
    """
    heads, nope = q_nope.shape[1], q_nope.shape[3]
    return _per_head(q_nope, up.unflatten(0, (heads, -1))[:, :nope])


def expand_values(weighted: torch.Tensor, up: torch.Tensor, nope: int) -> torch.Tensor:
    """Weighted latents [B, H, S, C] as what the heads give: [B, H, S, V]; the first `nope` rows of a head made keys."""
    return _per_head(weighted, up.unflatten(0, (weighted.shape[1], -1))[:, nope:].transpose(1, 2))


def _per_head(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows [B, H, S, in] times each head's own matrix [H, in, out], which is read once for the whole batch."""
    batch, _, queries, _ = rows.shape
    out = torch.bmm(rows.transpose(0, 1).flatten(1, 2), weight)
    return out.unflatten(1, (batch, queries)).transpose(0, 1)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Batches of matrices multiplied into float32, also where they hold 16 bits."""
    if left.dtype == right.dtype and _widens(left.device.type, left.dtype):
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(_wide(left), _wide(right))


@torch.compiler.assume_constant_result
def _widens(device_type: str, dtype: torch.dtype) -> bool:
    return bmm_widens(device_type, dtype)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _seen(
    queries: int,
    latent: torch.Tensor,
    lengths: torch.Tensor | None,
    starts: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor | None:
    """What each query sees, broadcast over [B, H, S, L], boolean or added; None where it is everything."""
    if lengths is None and starts is None:
        return mask
    tokens = torch.arange(latent.shape[1], device=latent.device)
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=latent.device)
    if lengths is not None:
        own = lengths.view(-1, 1, 1, 1) - queries + torch.arange(queries, device=latent.device).view(1, 1, -1, 1)
        seen = tokens <= own
    if starts is not None:
        seen = seen & (tokens >= starts.view(-1, 1, 1, 1))
    if mask is None or mask.dtype == torch.bool:
        return seen if mask is None else seen & mask
    return torch.where(seen, mask, float("-inf"))
