"""Whether the fused elementwise kernels compute on a device what torch computes there: asked before they serve."""

from __future__ import annotations

import functools

import torch

from inference_pio.kernels.gated import silu_mul
from inference_pio.kernels.rms_norm import add_rms_norm
from inference_pio.kernels.rotary import norm_rotate

ROWS = 3


@functools.cache
def why_elementwise_fails(device: torch.device, dtype: torch.dtype, widths: tuple[int, ...]) -> str | None:
    """What is wrong with norms of these widths, gates and rotations on a device; None if nothing is."""
    for width in widths:
        x, residual, weight = (_drawn(device, dtype, ROWS, width, seed=seed) for seed in range(3))
        normed, summed = add_rms_norm(x, residual, weight[0], 1e-6)
        expected = residual + x
        if not torch.equal(summed, expected) or not _close(normed, _normed(expected, weight[0])):
            return f"norms of rows of {width} in {dtype} are off"
    gate, up = (_drawn(device, dtype, ROWS, 1000, seed=seed) for seed in range(2))
    if not torch.equal(silu_mul(gate, up), torch.nn.functional.silu(gate) * up):
        return f"the gate of MLPs in {dtype} is off"
    return _why_rotation_fails(device, dtype)


def _why_rotation_fails(device: torch.device, dtype: torch.dtype) -> str | None:
    for turned in (64, 32):
        query, key = (_drawn(device, dtype, 2, ROWS, heads, 64, seed=heads) for heads in (4, 2))
        cos, sin = (_drawn(device, dtype, 2, ROWS, turned, seed=seed) for seed in (7, 8))
        for x, got in zip((query, key), norm_rotate(query, key, cos, sin), strict=True):
            front, back = x.transpose(1, 2)[..., :turned], x.transpose(1, 2)[..., turned:]
            swapped = torch.cat((-front[..., turned // 2 :], front[..., : turned // 2]), -1)
            if not torch.equal(got, torch.cat((front * cos[:, None] + swapped * sin[:, None], back), -1)):
                return f"the rotation of {turned} columns in {dtype} is off"
    return None


def _normed(x, weight):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def _close(got, expected):
    """A step of the dtype apart at most, in the norm and in its product with the weight: sums have another order."""
    eps = torch.finfo(got.dtype).eps
    return bool(((got.float() - expected.float()).abs() <= 3 * eps * expected.float().abs() + 1e-30).all())


def _drawn(device, dtype, *shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
