"""What a GPU allows, and how kernels without a launch file of their own are launched: block sizes, warps, stages.

Chosen by what compiles without spilling and how many programs then fit on a multiprocessor; measured ones replace them.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace

import torch

PAGE = 64
"""Tokens of a page of the cache; a block of the decode kernel."""
HEAD_DIMS = (64, 128, 256)
LATENT_WIDTHS = (64, 128, 256, 512)
ROPE_WIDTHS = (16, 32, 64, 128)
"""Widths of the two parts of a latent cache."""
MOST_SPLITS = 128
CODED_PROGRAMS = 2
"""Programs over codes a multiprocessor, of two warps each: at 32K tokens on an H100 49.4 us with 2, 51.7 with 4."""
MOST_JOINED = 128
"""Rows of float32 that one program joins."""
MOST_BLOCKS = 4096
"""Blocks of keys that one program chooses among."""
BLOCKS_OF_A_WARP = 512
RANKED_AT_A_TIME = 8
"""Blocks that are compared with all others of a row in one step."""
PAGES_SCORED = 16
"""Pages that one program scores: 256 programs at 32K tokens and 8 key heads."""
PAGES_RANKED = 16
"""Pages that one program ranks among all others."""
MOST_RANKED = 512
"""Pages up to which that pays, measured on an H100 (benchmarks/LOG.md)."""
DECODE_EXTRA_BYTES = 8 * 1024
"""Shared bytes of a decode program beside its pages: 6 KB are used at heads of 128."""
MASS_WAVES = 8
"""Programs a multiprocessor that weigh blocks of keys: those whose queries see few of them end early."""
MOST_LATENT_BUFFERS = 3
"""Blocks of a latent cache that lie in shared memory at a time: one is read while the others come."""


@dataclass(frozen=True)
class Limits:
    """What a GPU allows: compute capability as 90 for 9.0, shared bytes of one program, multiprocessors."""

    capability: int
    shared_bytes: int
    multiprocessors: int

    @property
    def has_descriptors(self) -> bool:
        """Whether a copy engine moves whole tiles, and programs may be as large as on a datacentre GPU that has it."""
        return self.capability >= 90 and self.shared_bytes >= 200 * 1024


HOPPER = Limits(90, 227 * 1024, 132)
AMPERE = Limits(80, 163 * 1024, 108)


@dataclass(frozen=True)
class DecodeLaunch:
    """`splits` programs share the tokens of one key head of one row of the batch."""

    splits: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class CodedLaunch:
    """The same over codes, of which a program takes so many tokens in one step; the first split has the last tokens,
    which are not coded yet."""

    splits: int
    tokens: int = 64
    warps: int = 2
    stages: int = 3


@dataclass(frozen=True)
class LatentLaunch:
    """`splits` programs share the tokens of one row of the batch, for `rows` of its heads, `block` tokens a step."""

    splits: int
    rows: int
    block: int
    warps: int
    stages: int


@dataclass(frozen=True)
class MassLaunch:
    """`rows` queries of a head a program, and `splits` programs that share the blocks of keys."""

    rows: int
    splits: int
    warps: int
    stages: int


_HERE = contextlib.nullcontext()


@functools.cache
def device_limits(device: torch.device) -> Limits:
    """The limits of a CUDA device; those of an H100 for the interpreter, which runs on the CPU."""
    if device.type != "cuda":
        return HOPPER
    found = torch.cuda.get_device_properties(device)
    return Limits(found.major * 10 + found.minor, found.shared_memory_per_block_optin, found.multi_processor_count)


def choose_decode_launch(limits: Limits, batch: int, key_heads: int, head_dim: int, capacity: int) -> DecodeLaunch:
    """The launch of the decode kernel, fixed for a cache of `capacity` tokens whatever it holds.

    One program a multiprocessor: measured on an H100 at 32K tokens, 8 key heads read 2.71 TB/s with 16 splits, 2.54
    with 49 and 2.42 with 66, 4 key heads 2.25 with 33 and 2.21 with 66, and at 16K 2.03 with 33 and 1.96 with 32.

    >>> choose_decode_launch(HOPPER, batch=1, key_heads=8, head_dim=128, capacity=32768).splits
    16
    """
    stages = 3 if head_dim <= 128 and _fits(limits, head_dim, 3) else 2
    wanted = limits.multiprocessors // (batch * key_heads)
    splits = max(1, min(wanted, MOST_SPLITS, -(-capacity // PAGE)))
    return DecodeLaunch(splits, stages=stages)


def choose_rotated_launch(limits: Limits, batch: int, key_heads: int, head_dim: int, capacity: int) -> DecodeLaunch:
    """The launch of the kernel that rotates and attends: one split more, for the new token, and twice the warps where
    the first page of keys and of values would leave a thread no registers.

    >>> choose_rotated_launch(HOPPER, batch=1, key_heads=8, head_dim=128, capacity=32768)
    DecodeLaunch(splits=17, warps=4, stages=3)
    """
    launch = choose_decode_launch(limits, batch, key_heads, head_dim, capacity)
    splits = min(launch.splits + 1, MOST_SPLITS)  # one more would double what is joined, which is a power of two
    return replace(launch, splits=splits, warps=launch.warps * (1 if head_dim <= 128 else 2))


def choose_coded_launch(limits: Limits, batch: int, key_heads: int, head_dim: int, capacity: int) -> CodedLaunch:
    """The launch of the decode kernel over codes: making numbers of them needs more than one program's warps.

    Two warps take half the instructions of four, which each do for themselves what is shared; wide heads, and GPUs
    before Hopper, have no registers for that.

    >>> choose_coded_launch(HOPPER, batch=1, key_heads=8, head_dim=128, capacity=32768)
    CodedLaunch(splits=33, tokens=64, warps=2, stages=3)
    """
    few = head_dim <= (128 if limits.capability >= HOPPER.capability else 64)
    wanted = CODED_PROGRAMS * limits.multiprocessors // (batch * key_heads)
    splits = 1 + max(1, min(wanted - 1, MOST_SPLITS, -(-capacity // PAGE)))
    return CodedLaunch(splits) if few else CodedLaunch(splits, tokens=32, warps=4)


def last_joins(launch: DecodeLaunch, group: int) -> bool:
    """Whether the last program of a key head, which `group` heads share, joins sooner than a second launch would.

    Measured on an H100: 64 rows at 4K tokens give 1.58 against 1.51 TB/s, 128 at 1K the same, 264 at 16K 1.75 against
    1.87, since one program reads what 32 would.

    >>> last_joins(DecodeLaunch(16), 4), last_joins(DecodeLaunch(33), 8)
    (True, False)
    """
    return launch.splits * group <= MOST_JOINED


def choose_latent_launch(
    limits: Limits, batch: int, heads: int, width: int, rope: int, capacity: int
) -> LatentLaunch:  # fmt: skip
    """The launch of the latent decode kernel, fixed for a cache of `capacity` tokens whatever it holds.

    >>> choose_latent_launch(HOPPER, batch=1, heads=20, width=512, rope=64, capacity=32768)
    LatentLaunch(splits=128, rows=32, block=64, warps=8, stages=3)
    """
    rows = 16 if heads <= 16 else 32
    token_bytes = 2 * (width + rope)
    room = limits.shared_bytes - rows * token_bytes - DECODE_EXTRA_BYTES  # the queries stay in shared memory
    block = next((block for block in (64, 32) if room >= 2 * block * token_bytes), 16)
    stages = 1 + max(1, min(room // (block * token_bytes), MOST_LATENT_BUFFERS))
    wanted = limits.multiprocessors // (batch * -(-heads // rows))
    splits = max(1, min(wanted, MOST_SPLITS, -(-capacity // PAGE)))
    return LatentLaunch(splits, rows, block, 8 if width > 128 else 4, stages)


def choose_mass_launch(limits: Limits, heads: int, rows: int, head_dim: int, blocks: int) -> MassLaunch:
    """The launch of the kernel that weighs blocks of keys for `rows` queries of each of `heads` (over the batch).

    >>> choose_mass_launch(HOPPER, heads=32, rows=128, head_dim=128, blocks=512)
    MassLaunch(rows=128, splits=33, warps=8, stages=3)
    """
    tile = 128 if rows > 64 and head_dim <= 128 else 64 if rows > 16 else 16
    programs = heads * -(-rows // tile)
    splits = max(1, min(MASS_WAVES * limits.multiprocessors // programs, blocks))
    return MassLaunch(tile, splits, 8 if tile == 128 else 4, 3 if head_dim <= 128 else 2)


def choice_warps(blocks: int) -> int:
    """Warps of a program that holds numbers of so many blocks: the fewer, the less they wait for one another.

    >>> choice_warps(512), choice_warps(4096)
    (1, 16)
    """
    return 16 if blocks > 2048 else max(1, blocks // BLOCKS_OF_A_WARP)


def ranking_warps(pages: int) -> int:
    """Warps of a program that ranks a few pages among so many: a thread holds 64 pairs of them at most.

    >>> ranking_warps(512), ranking_warps(16)
    (4, 1)
    """
    return max(1, PAGES_RANKED * pages // 2048)


def audit_warps(blocks: int) -> int:
    """Warps of a program that ranks so many blocks and sums what lies in front of each.

    >>> audit_warps(512), audit_warps(4096)
    (4, 16)
    """
    return 4 if blocks <= 1024 else 8 if blocks <= 2048 else 16


def norm_warps(width: int) -> int:
    """Warps of a program that norms one row: a thread holds at most 16 of its elements, in up to 32 warps.

    >>> norm_warps(128), norm_warps(2560), norm_warps(5120)
    (1, 8, 16)
    """
    return min(max(_power_of_2(width) // 512, 1), 32)


def rotary_rows(tokens: int, heads: int) -> int:
    """Tokens of one head that a program turns: as few programs as fill a GPU, and one token where there is one.

    >>> rotary_rows(1, 40), rotary_rows(4096, 40)
    (1, 16)
    """
    return min(_power_of_2(tokens), 16 if tokens * heads >= 16384 else 4)


def _power_of_2(number: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(number - 1, 0).bit_length()


def _fits(limits: Limits, head_dim: int, stages: int) -> bool:
    """Whether the pages of a decode program lie in shared memory, one in use and the others on their way."""
    return limits.shared_bytes >= (stages - 1) * 2 * PAGE * head_dim * 2 + DECODE_EXTRA_BYTES


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Make a tensor's GPU the current one, which is where Triton launches."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)
