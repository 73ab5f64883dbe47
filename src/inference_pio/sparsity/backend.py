"""By what sparse attention is computed here: our kernels where they serve, else torch's over gathered keys."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inference_pio.kernels.block_estimate import SPAN
from inference_pio.kernels.triton.attention_support import supports
from inference_pio.kernels.triton.flash_launch import choose_flash_launch
from inference_pio.kernels.triton.launch import MOST_BLOCKS, PAGE, device_limits

TRITON, GATHERED = "triton", "gathered"


@dataclass(frozen=True)
class Backend:
    """`reason`: why it is not "triton", or nothing."""

    name: str
    reason: str = ""


@dataclass(frozen=True)
class Attended:
    """What attention gave, `out` [B, H, S, D], and how much it read: the sums of `kept` and `visible` are blocks (or
    pages) over all heads. They stay on the device until `sizes` is asked for."""

    out: Tensor
    kept: Tensor | int
    visible: Tensor | int
    backend: Backend

    def sizes(self) -> tuple[int, int]:
        """How many blocks were kept, and how many were visible. Waits for the device."""
        kept, visible = (int(one.sum()) if isinstance(one, Tensor) else one for one in (self.kept, self.visible))
        return kept, visible


def choose_backend(
    query: Tensor, key: Tensor, value: Tensor, scorer: str, query_block: int, key_block: int
) -> Backend:  # fmt: skip
    """The one for `query` [B, H, S, D] over `key`, `value` [B, key heads, L, D] in lists of such blocks; one of a query
    is decode over pages."""
    served = supports(query, key, value)
    if not served:
        return Backend(GATHERED, served.said)
    blocks = -(-key.shape[2] // key_block)
    if blocks > MOST_BLOCKS:
        return Backend(GATHERED, f"its kernels choose among up to {MOST_BLOCKS} blocks, and there are {blocks}")
    if query_block == 1:
        return Backend(TRITON)
    if scorer != "mean":
        return Backend(GATHERED, f"its kernels score blocks by means, and not by {scorer!r}")
    launch = choose_flash_launch(device_limits(query.device), query.shape[-1])
    if query_block != launch.query_block or key_block % launch.key_block or key_block not in (SPAN, 2 * SPAN):
        return Backend(
            GATHERED,
            f"its kernel works on blocks of {launch.query_block} queries and of {PAGE} or {2 * PAGE} keys here, and "
            f"not on {query_block} and {key_block}",
        )
    return Backend(TRITON)
