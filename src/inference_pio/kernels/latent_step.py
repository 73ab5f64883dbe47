"""What attention over a latent cache needs around it for one new token a row; the plain truth first.

`latent_store` puts the token into the cache, `absorb` makes its queries fit for it, `expand` makes what was attended to
what the heads give (`kernels.latent_attention` says why that is exact). Sizes: M rows, latents C wide, rotated parts R,
H heads of N numbers that meet the latent and V that come of it. Tables `cos` and `sin` [P, R] hold a row a position.
"""

from __future__ import annotations

import torch

from inference_pio.kernels.latent_attention import absorb_queries, expand_values


def naive_latent_row(
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    interleaved: bool,
) -> torch.Tensor:
    """What the cache holds of each token `kv` [M, C + R], in float32: its latent after the norm, its part rotated."""
    width = len(norm_weight)
    latent, turned = kv[:, :width].float(), kv[:, width:].float()
    latent = latent * torch.rsqrt(latent.square().mean(-1, keepdim=True) + eps) * norm_weight.float()
    return torch.cat((latent, naive_rotate(turned, cos, sin, positions, interleaved=interleaved)), -1)


def naive_rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, *, interleaved: bool
) -> torch.Tensor:
    """Pairs of numbers of `x` [M, ..., R] as complex ones, turned by their position's angles; first parts lie before
    all second parts. `interleaved`: a pair lies side by side in `x`, else half a row apart."""
    half = x.shape[-1] // 2
    pairs = x.float().unflatten(-1, (half, 2) if interleaved else (2, half))
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    angle = torch.complex(cos[positions.long(), :half].float(), sin[positions.long(), :half].float())
    turned = torch.view_as_complex(pairs.contiguous()) * angle.view(len(x), *[1] * (x.dim() - 2), half)
    return torch.cat((turned.real, turned.imag), -1)


def naive_absorb(
    query: torch.Tensor,
    up: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    heads: int,
    nope: int,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [M, H * (N + R)] through the key rows of `up` [H * (N + V), C]: [M, H, C], and their rest turned."""
    by_head = query.float().unflatten(-1, (heads, -1))
    keys = up.float().unflatten(0, (heads, -1))[:, :nope]
    turned = naive_rotate(by_head[..., nope:], cos, sin, positions, interleaved=interleaved)
    return torch.einsum("mhn,hnc->mhc", by_head[..., :nope], keys), turned


def naive_expand(attended: torch.Tensor, up: torch.Tensor, nope: int) -> torch.Tensor:
    """Weighted latents [M, H, C] behind the value rows of `up`: [M, H * V]."""
    values = up.float().unflatten(0, (attended.shape[1], -1))[:, nope:]
    return torch.einsum("mhc,hvc->mhv", attended.float(), values).flatten(1)


def latent_store(
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    interleaved: bool,
) -> None:
    """Put each token `kv` [M, C + R] into `cache` [M, capacity, 1, C + R] behind the first `lengths` - 1, with the bits
    that the library would have put there.

    `positions` int32 [M] and `lengths` int32 [M] ([1] serves all) are read on the device. A length of zero, or beyond
    the capacity, writes nothing.
    """
    width = len(norm_weight)
    latent = kv[:, :width].to(torch.float32)
    latent = latent * torch.rsqrt(latent.pow(2).mean(-1, keepdim=True) + eps)
    turned = rotate(kv[:, width:], cos, sin, positions, interleaved=interleaved)
    row = torch.cat((norm_weight * latent.to(kv.dtype), turned), -1)
    rows, place = torch.arange(len(kv), device=kv.device), lengths.expand(len(kv)).long() - 1
    inside = (place >= 0) & (place < cache.shape[1])
    place = place.clamp(0, cache.shape[1] - 1)
    cache[rows, place, 0] = torch.where(inside[:, None], row, cache[rows, place, 0])


def absorb(
    query: torch.Tensor,
    up: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    heads: int,
    nope: int,
    interleaved: bool,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `naive_absorb` in the dtype of the queries; the turned part has the library's bits."""
    by_head = query.unflatten(-1, (heads, -1))
    absorbed = absorb_queries(by_head[:, :, None, :nope], up)[:, :, 0]
    turned = rotate(by_head[..., nope:], cos, sin, positions, interleaved=interleaved)
    return (absorbed, turned) if out is None else (out[0].copy_(absorbed), out[1].copy_(turned))


def absorb_and_store(
    query: torch.Tensor,
    up: torch.Tensor,
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    heads: int,
    nope: int,
    interleaved: bool,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of the above, which need nothing of one another."""
    latent_store(kv, norm_weight, eps, cos, sin, positions, cache, lengths, interleaved=interleaved)
    return absorb(query, up, cos, sin, positions, heads=heads, nope=nope, interleaved=interleaved, out=out)


def expand(attended: torch.Tensor, up: torch.Tensor, nope: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """The same as `naive_expand` in the dtype of what was attended."""
    found = expand_values(attended[:, :, None], up, nope)[:, :, 0].flatten(1)
    return found if out is None else out.copy_(found)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, *, interleaved: bool
) -> torch.Tensor:
    """`naive_rotate` with the library's operations in the library's order, so with its bits."""
    shape, half = (len(x), *[1] * (x.dim() - 2), x.shape[-1]), x.shape[-1] // 2
    cosines, sines = (table[positions.long()].to(x.dtype).view(shape) for table in (cos, sin))
    if interleaved:
        first, second, cosines, sines = x[..., 0::2], x[..., 1::2], cosines[..., :half], sines[..., :half]
        return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)
    return x * cosines + torch.cat((-x[..., half:], x[..., :half]), -1) * sines
