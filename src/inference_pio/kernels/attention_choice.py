"""Which backend serves exact attention, as data: by device, phase, width of the heads and number of keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FUSED, FLASH, CUDNN, EFFICIENT, TRITON, FLEX = "fused", "flash", "cudnn", "efficient", "triton", "flex"


class Phase(StrEnum):
    """What a call asks for, as far as kernels differ in it. Decoding is one query a row."""

    __hash__ = str.__hash__  # an Enum's own runs in Python, at each look into a table

    PREFILL = "prefill"
    """Causal, as many queries as keys, nothing hidden."""
    CAPTURED_PREFILL = "captured prefill"
    """The same while a CUDA graph is captured: what a call takes the host does not count."""
    PADDED_PREFILL = "padded prefill"
    """Causal, padding at the left, with or without keys from before."""
    CHUNK = "chunk"
    """Causal, after keys from before, nothing hidden."""
    DECODE = "decode"
    PADDED_DECODE = "padded decode"
    STATIC_DECODE = "static decode"
    """Over a cache that holds more places than keys; their number is on the device."""
    MASKED = "masked"
    """Any other boolean mask."""
    BIASED = "biased"
    """An additive mask."""
    MASKED_DECODE = "masked decode"
    VISION = "vision"
    """Every query sees every key of its picture."""


DECODING = frozenset({Phase.DECODE, Phase.PADDED_DECODE, Phase.STATIC_DECODE, Phase.MASKED_DECODE})
WHOLE = (Phase.PREFILL, Phase.CAPTURED_PREFILL)
CAUSAL = frozenset({*WHOLE, Phase.PADDED_PREFILL, Phase.CHUNK})
READ_A_MASK = frozenset({Phase.MASKED, Phase.BIASED, Phase.MASKED_DECODE})


@dataclass(frozen=True)
class Row:
    """`backends`, best first, for `phases` of at least `keys` keys, on GPUs of a compute capability (90 for 9.0) and
    heads of a width from the first to the second number."""

    phases: tuple[Phase, ...]
    backends: tuple[str, ...]
    capability: tuple[int, int]
    widths: tuple[int, int] = (1, 256)
    keys: int = 0
    by_roles: bool = False
    """Whether it was measured with the kernel whose warps take roles, and counts only where that is there."""

    def fits(self, capability: int, phase: Phase, width: int) -> bool:
        in_range = self.capability[0] <= capability <= self.capability[1]
        return in_range and phase in self.phases and self.widths[0] <= width <= self.widths[1]


HOPPER, NVIDIA, ANY = (90, 99), (80, 999), (1, 999)

TABLE = (
    # Measured on an H100, causal, 32 heads over 8 of 128, in one run: 289/639/658/628 TFLOP/s at 1K/4K/32K/128K keys,
    # cuDNN 267/529/612/564. By hand (benchmarks/LOG.md): its call takes the host 7 us more than cuDNN's, for which
    # layers of shorter prompts wait: on a quiet host forwards of Qwen3-4B take 3% longer by it with 1K tokens, 1% less
    # with 2K, 2% less with 4K, and on others 2K gains nothing. In a graph nobody waits; at 256 keys they are alike, as
    # for heads of 64.
    Row((Phase.PREFILL,), (TRITON, CUDNN, FLASH, EFFICIENT), (90, 90), widths=(128, 128), keys=4096, by_roles=True),
    Row((Phase.CAPTURED_PREFILL,), (TRITON, CUDNN, FLASH, EFFICIENT), (90, 90), (128, 128), keys=512, by_roles=True),
    # Measured likewise: the built-in flash kernel reaches 316/353/313 TFLOP/s at 8K/32K/128K keys.
    Row(WHOLE, (CUDNN, FLASH, TRITON, EFFICIENT), HOPPER, widths=(1, 128)),
    # Predicted: 509 against 298 TFLOP/s were published for heads of 256, where this cuDNN has such a kernel; if it has
    # none, the check drops it.
    Row(WHOLE, (CUDNN, FLASH, TRITON, EFFICIENT), HOPPER, widths=(129, 256)),
    # Predicted: cuDNN is not tried of itself elsewhere; on Blackwell it is reported to corrupt fewer than 8 key heads.
    Row(WHOLE, (FLASH, TRITON, EFFICIENT), NVIDIA),
    # cuDNN would read a mask of queries x keys, and repeat the key heads; the Triton kernel reads neither. Measured on
    # an H100: 8 prompts of 2048 behind padding 395 TFLOP/s, where torch's own choice reaches 80.
    Row((Phase.PADDED_PREFILL,), (TRITON, CUDNN, EFFICIENT), HOPPER),
    Row((Phase.PADDED_PREFILL,), (TRITON, EFFICIENT), NVIDIA),
    # Measured by hand on an H100 (benchmarks/LOG.md): 2048 tokens behind 30K from before 690 TFLOP/s, cuDNN called
    # twice, over those and over its own square, as it takes no mask of this kind, 590; without roles 485.
    Row((Phase.CHUNK,), (TRITON, FLASH, EFFICIENT), HOPPER, widths=(1, 128)),
    # Predicted: the flash kernel's own lower-right causal form.
    Row((Phase.CHUNK,), (FLASH, TRITON, EFFICIENT), NVIDIA),
    # Both split the keys among programs; two Triton launches cost the host more than one operator, which shows until
    # reading the keys takes longer than that. cuDNN would build a plan for each new length: measured on an H100, a
    # cache that grows from 4096 tokens by 64 takes it 39 ms a step, and this 0.1 ms.
    Row((Phase.DECODE,), (TRITON, FLASH, EFFICIENT), NVIDIA, keys=16384),
    Row((Phase.DECODE,), (FLASH, TRITON, EFFICIENT), NVIDIA),
    # The only kernel that takes starts and lengths; the others read a mask and every place of the cache. Measured on an
    # H100: 8 rows of 4096 behind padding 569 GB/s, called from Python, where torch's own choice reaches 140.
    Row((Phase.PADDED_DECODE, Phase.STATIC_DECODE), (TRITON, EFFICIENT), NVIDIA),
    # The Triton kernel computes no tile that a mask hides and repeats no key head, as the others do. Measured on an
    # H100: 8192 tokens in 4 causal documents 359 TFLOP/s of what is seen, EFFICIENT 41, torch's own choice 38; with a
    # float32 mask 276, where torch's own choice is wrong.
    # cuDNN stands next from where its plan, built for each new shape, is paid back.
    Row((Phase.MASKED, Phase.BIASED), (TRITON, CUDNN, EFFICIENT), HOPPER, keys=2048),
    Row((Phase.MASKED, Phase.BIASED), (TRITON, EFFICIENT), NVIDIA),
    Row((Phase.MASKED_DECODE,), (EFFICIENT,), NVIDIA),
    # Sizes of pictures vary from call to call, and cuDNN builds a plan for each; flash takes all at once. Measured on
    # an H100: 64 pictures of 256 patches 2.5 times as fast as a call for each.
    Row((Phase.VISION,), (FLASH, CUDNN, EFFICIENT), HOPPER),
    Row((Phase.VISION,), (FLASH, EFFICIENT), NVIDIA),
    # Predicted: GPUs before sm_80 have no other kernel of these.
    Row(tuple(Phase), (EFFICIENT,), ANY),
)
"""The first row that fits counts; what torch chooses by itself stands behind every row."""


def candidates(
    capability: int, phase: Phase, width: int, *, by_roles: bool = True
) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """From how many keys on which backends, best first; capability 0 is a device that is no NVIDIA GPU. `by_roles`:
    whether this Triton lets warps take roles (`compat.why_no_warp_roles`).

    >>> candidates(0, Phase.PREFILL, 128)
    ((0, ('fused',)),)
    >>> candidates(90, Phase.DECODE, 128)
    ((0, ('flash', 'triton', 'efficient', 'fused')), (16384, ('triton', 'flash', 'efficient', 'fused')))
    """
    rows = [row for row in TABLE if row.fits(capability, phase, width) and (by_roles or not row.by_roles)]
    steps = sorted({0, *(row.keys for row in rows)})
    return tuple((step, (*next((row.backends for row in rows if row.keys <= step), ()), FUSED)) for step in steps)
