"""How the kernels of attention with many queries are launched: blocks, warps, stages, by the width of the heads.

Chosen by what compiles without spilling and how many programs then fit on a multiprocessor; measured ones replace them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import HOPPER, Limits


@dataclass(frozen=True)
class FlashLaunch:
    """`query_block` queries a program, `key_block` keys a step; `described` moves keys by the copy engine.

    `registers` caps a thread's registers, so that a second program fits beside the first.
    """

    query_block: int
    key_block: int
    warps: int
    stages: int
    described: bool = False
    registers: int | None = None


@dataclass(frozen=True)
class RolesLaunch:
    """The flash kernel whose warps take roles: `query_block` queries a tile, of which each of two warpgroups has half,
    and `key_block` keys a step, of which `stages` lie in shared memory.

    A warpgroup that attends has `registers` a thread, and every warp `registers_at_entry` before roles are taken.
    """

    query_block: int
    key_block: int
    stages: int
    registers: int = 232
    registers_at_entry: int = 168

    def takes_lists(self, query_block: int, key_block: int) -> bool:
        """Whether lists of such blocks fit: a step takes a block of keys, or two of half the size."""
        return query_block == self.query_block and key_block in (self.key_block, self.key_block // 2)


FLASH_DESCRIBED = {
    64: FlashLaunch(128, 64, 8, 3, described=True, registers=128),
    128: FlashLaunch(128, 64, 8, 2, described=True, registers=128),
    256: FlashLaunch(128, 64, 8, 2, described=True),
}
FLASH_ROLES = {
    64: RolesLaunch(128, 128, 4),
    128: RolesLaunch(128, 128, 2),
}
"""With heads of 256 a thread would have no registers for both its sums and a tile of scores."""
FLASH_PADDED = {
    64: FlashLaunch(128, 64, 8, 3, described=True, registers=128),
    128: FlashLaunch(128, 64, 8, 3, described=True),
    256: FlashLaunch(128, 32, 8, 3, described=True),
}
"""Guarding against what padding holds takes registers: the launches above would spill."""
FLASH_CERTIFIED = FLASH_PADDED | {
    128: FlashLaunch(128, 32, 8, 3, described=True, registers=128),
    256: FlashLaunch(128, 32, 8, 2, described=True),
}
"""Leaving tiles out on the way takes registers too; small tiles are left out more often."""
FLASH_MASKED = {
    64: FlashLaunch(128, 64, 8, 3, described=True, registers=128),
    128: FlashLaunch(128, 64, 8, 2, described=True, registers=128),
    256: FlashLaunch(128, 32, 8, 2, described=True),
}
FLASH_ADDED = FLASH_MASKED | {128: FlashLaunch(128, 64, 8, 3, described=True)}
"""A mask is read by tiles, which lie in shared memory too. An additive one takes more registers than a boolean one."""
FLASH = {
    64: FlashLaunch(128, 64, 8, 2),
    128: FlashLaunch(128, 32, 8, 3),
    256: FlashLaunch(64, 32, 8, 2),
}
FLASH_ADDED_PLAIN = FLASH | {128: FlashLaunch(64, 32, 4, 3)}


def choose_flash_launch(
    limits: Limits,
    head_dim: int,
    *,
    aligned: bool = True,
    padded: bool = False,
    certified: bool = False,
    mask: torch.dtype | None = None,
) -> FlashLaunch:
    """The launch of the flash kernel. `aligned`: keys and values may be moved by the copy engine. `padded`: there are
    keys that a whole row of the batch must not see. `certified`: tiles may be left out on the way. `mask`: the dtype of
    the one that is read.

    >>> from inference_pio.kernels.triton.launch import AMPERE
    >>> choose_flash_launch(HOPPER, 128).described, choose_flash_launch(AMPERE, 128).described
    (True, False)
    """
    plain, described = FLASH, FLASH_CERTIFIED if certified else FLASH_PADDED if padded else FLASH_DESCRIBED
    if mask is not None:
        plain, described = (FLASH, FLASH_MASKED) if mask == torch.bool else (FLASH_ADDED_PLAIN, FLASH_ADDED)
    table = described if limits.has_descriptors and aligned else plain
    if head_dim not in table:
        raise InvalidSetting(f"no Triton attention kernel for heads of {head_dim}: known are {list(table)}.")
    return table[head_dim]


def choose_roles_launch(limits: Limits, head_dim: int) -> RolesLaunch | None:
    """The launch of the flash kernel whose warps take roles; None where the GPU, or the width, has none. Its
    instructions are Hopper's own: later GPUs lack them.

    >>> from inference_pio.kernels.triton.launch import AMPERE
    >>> choose_roles_launch(HOPPER, 128), choose_roles_launch(AMPERE, 128)
    (RolesLaunch(query_block=128, key_block=128, stages=2, registers=232, registers_at_entry=168), None)
    """
    return FLASH_ROLES.get(head_dim) if limits.has_descriptors and limits.capability == HOPPER.capability else None
