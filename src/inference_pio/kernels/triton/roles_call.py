"""A call of the flash kernel whose warps take roles: tiles described to the copy engine, constants, a launch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import triton
from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.triton.counters import Counters
from inference_pio.kernels.triton.flash_launch import RolesLaunch
from inference_pio.kernels.triton.flash_roles import GROUPS, flash_roles_kernel
from inference_pio.kernels.triton.launch import device_limits, on_device
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

COUNTERS = Counters()
"""Of the tiles that a launch's programs have asked for."""


@dataclass(slots=True)
class RolesCall:
    """The kernel for tensors of one form (`kept_calls.form_of`), which lets the host be quick about all but the first.

    `tiles`: what describes those of query, key, value and out to the copy engine, but for where they lie.
    `compiled`: what launches the kernel, once it was launched.
    """

    tiles: tuple[dict[str, Any], ...]
    constants: dict[str, Any]
    programs: int
    options: dict[str, int]
    scale: float
    compiled: Callable[..., None] | None = None

    @classmethod
    def of(
        cls, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor, launch: RolesLaunch, *,
        causal: bool, starts: torch.Tensor | None = None, lists: BlockList | None = None,
        lse: torch.Tensor | None = None,
    ) -> RolesCall:  # fmt: skip
        """The call for tensors that the copy engine can address (`flash.roles_launch_for`)."""
        batch, heads, queries, width = query.shape
        number = triton.cdiv(queries, launch.query_block) * heads * batch
        parts = 1 if lists is None else launch.key_block // lists.key_block
        rows, part = launch.query_block // GROUPS.value, launch.key_block // parts
        constants = {
            "GROUP": heads // key.shape[1], "ROWS": rows, "TILE": launch.key_block, "WIDTH": width,
            "STAGES": launch.stages, "PARTS": parts, "CAUSAL": causal, "HAS_STARTS": starts is not None,
            "LISTED": lists is not None, "HAS_LSE": lse is not None, "REGISTERS": launch.registers,
        }  # fmt: skip
        return cls(
            (_tiles(query, rows), _tiles(key, part), _tiles(value, part), _tiles(out, rows)), constants,
            min(number, device_limits(query.device).multiprocessors),
            {"num_warps": 4, "maxnreg": launch.registers_at_entry}, width**-0.5,
        )  # fmt: skip

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
        scale: float | None = None, starts: torch.Tensor | None = None, lists: BlockList | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """`out` [B, H, S, D], filled as `flash.flash_attention` says."""
        of_query, of_key, of_value, of_out = self.tiles
        scale = self.scale if scale is None else float(scale)  # an integer would be compiled in
        listed = (None, None, 0) if lists is None else (lists.counts, lists.indices, lists.indices.shape[-1])
        with on_device(query):
            counters, slot, stream = COUNTERS.take(query.device)
            given = (
                _lying(of_query, query), _lying(of_key, key), _lying(of_value, value), _lying(of_out, out),
                lse, counters, starts, *listed, slot, scale,
            )  # fmt: skip
            if self.compiled is not None:
                self.compiled(*given, *self.constants.values(), stream=stream)
            else:
                kernel = flash_roles_kernel[(self.programs,)](*given, **self.constants, **self.options)
                self.compiled = None if kernel is None else kernel[(self.programs, 1, 1)]
        return out


def _tiles(tensor: torch.Tensor, rows: int) -> dict[str, Any]:
    """How the copy engine moves so many rows of a head at a time; the tensor itself is not held."""
    layout = _layout(8 * tensor.element_size())
    return vars(
        TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, 1, rows, tensor.shape[3]], layout)
    ) | {"base": None}


def _lying(tiles: dict[str, Any], tensor: torch.Tensor) -> TensorDescriptor:
    """The tiles of a tensor of the same form, without checking them once more."""
    described = object.__new__(TensorDescriptor)
    described.__dict__ = tiles.copy()
    described.base = tensor
    return described


@functools.cache  # making one takes the host as long as a small kernel takes the GPU
def _layout(bits: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=4)
