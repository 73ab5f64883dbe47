"""How a product of a few rows with a large matrix is launched."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.group_codes import CODES_OF_A_WORD
from inference_pio.kernels.triton.launch import Limits
from inference_pio.kernels.triton.overlap import FIRST_OVERLAPPING

THREADS = 32
LOAD_BYTES = 16
MATRIX_ROWS = 16
"""Rows of weights that matrix units take at a time."""
MATRIX_COLUMNS = 128
"""Columns of a step for each warp of theirs."""
NARROW = 8
"""Columns of x that they take at a time: rows of it, or parts of rows."""
MOST_STAGES = 6
HELD = 2
"""Stages of a launch whose codes wait in registers: one step is multiplied, two are on their way. More of them, on an
H100, take no less time."""
HELD_WORDS = 16
"""Words of a row that a warp then takes in a step: a group of half bytes, 64 codes of fp8."""
WORD_BYTES = 4
MOST_EXACT_ROWS = 2
"""Rows of x that weights in 12 bits are multiplied with as they are; for more they are unpacked."""


@dataclass(frozen=True)
class GemvLaunch:
    """`rows` of the weights a program, `columns` of them a step.

    `stages`: the matrix units multiply, and so many tiles are on their way to them, `HELD` of them in registers where
    `codes_held`; none: each thread multiplies what it reads. `dependent`: a program begins while the kernel in front
    still runs, and reads only weights until its end. `parts`: the units take each row as so many, cut along the
    inputs, `columns` of each part a step.
    """

    rows: int
    columns: int
    warps: int
    stages: int = 0
    dependent: bool = False
    parts: int = 1

    def check(self) -> None:
        """Raise InvalidSetting for numbers that no kernel can be made of."""
        numbers = (self.rows, self.columns, self.warps, self.parts)
        if any(number < 1 or number & (number - 1) for number in numbers) or self.columns < THREADS * self.warps:
            raise InvalidSetting(
                f"{self} is no launch: give powers of two, and {THREADS * self.warps} columns or more to its warps."
            )
        if not 0 <= self.stages <= MOST_STAGES or (self.stages and self.rows * self.parts < MATRIX_ROWS):
            raise InvalidSetting(
                f"{self} is no launch: matrix units take {MATRIX_ROWS} rows or more, in 1 to {MOST_STAGES} stages."
            )
        whole = self.rows * self.parts == MATRIX_ROWS and self.columns == MATRIX_COLUMNS * self.warps
        if self.parts > 1 and not (self.stages == HELD and whole):
            raise InvalidSetting(
                f"{self} is no launch: rows in parts are {MATRIX_ROWS} in all, of which a warp takes {MATRIX_COLUMNS} "
                f"columns a step, in {HELD} stages."
            )

    def require(
        self, limits: Limits, dtype: torch.dtype, group: int = 0, *, batch: int = 1, inputs: int | None = None
    ) -> None:
        """Raise InvalidSetting for a launch that a GPU cannot run, or that does not serve activations of a dtype, or
        codes in groups of so many; for one by parts also where it does not serve `batch` rows of x with `inputs`."""
        self.check()
        if self.stages and group and (group != MATRIX_COLUMNS or self.columns % (MATRIX_COLUMNS * self.warps)):
            raise InvalidSetting(
                f"{self} is not for groups of {group}: matrix units take groups of {MATRIX_COLUMNS}, one or more a "
                "warp; others go without `stages`."
            )
        if self.parts > 1 and not (group and takes_parts(self.parts, batch, inputs)):
            what = f"{inputs} inputs in groups of {group}" if group else "weights that are not in groups"
            raise InvalidSetting(
                f"{self} is not for {batch} rows of x and {what}: a part is whole groups of {MATRIX_COLUMNS}, and all "
                f"rows of x have {NARROW} parts at most; others go with `parts` of 1, and {MATRIX_ROWS} rows or more."
            )
        if self.stages and dtype is not torch.bfloat16:  # float16 could not hold x times a norm's weight
            raise InvalidSetting(f"{self} is for bfloat16, and x is {dtype}: launch it without `stages`.")
        if self.dependent and limits.capability < FIRST_OVERLAPPING:
            raise InvalidSetting(
                f"kernels may overlap from compute capability {FIRST_OVERLAPPING / 10} on, and this GPU has "
                f"{limits.capability / 10}: launch it without `dependent`."
            )


def codes_held(launch: GemvLaunch, dtype: torch.dtype, group: int, inputs: int) -> int:
    """Codes of a word where weights go straight into the registers of matrix units, 16 rows of them, each warp with
    groups of its own; 0 where they go another way.

    >>> codes_held(GemvLaunch(16, 256, 2, HELD), torch.int32, 128, 2560)
    8
    >>> codes_held(GemvLaunch(16, 128, 2, HELD), torch.uint8, 0, 2560)
    4
    >>> codes_held(GemvLaunch(16, 256, 2, stages=3), torch.int32, 128, 2560)
    0
    """
    codes = CODES_OF_A_WORD if group == MATRIX_COLUMNS else WORD_BYTES if dtype is torch.uint8 and not group else 0
    taken = codes * HELD_WORDS
    fits = (
        launch.stages == HELD and launch.rows * launch.parts == MATRIX_ROWS and launch.columns == taken * launch.warps
    )
    return codes if codes and fits and inputs % (taken * launch.parts) == 0 else 0


def takes_parts(parts: int, batch: int, inputs: int | None) -> bool:
    """Whether rows of so many inputs, None for any, are cut into so many parts of whole groups of 128, and the parts of
    `batch` rows of x have a column each of the eight that matrix units take.

    >>> takes_parts(4, 1, 9728), takes_parts(8, 1, 9728), takes_parts(4, 3, 9728)
    (True, False, False)
    """
    rows_of_x = 1 << (batch - 1).bit_length()
    return parts * rows_of_x <= NARROW and (inputs or 0) % (parts * MATRIX_COLUMNS) == 0


def weight_bytes(weight: torch.Tensor, group: int) -> float:
    """Bytes of one weight: half of one where a word holds eight codes.

    >>> weight_bytes(torch.zeros(2, 8, dtype=torch.int8), 0), weight_bytes(torch.zeros(2, 8, dtype=torch.int32), 64)
    (1, 0.5)
    """
    return 0.5 if group else weight.element_size()


def lanes(launch: GemvLaunch, x_bytes: int, weight_bytes: float) -> tuple[int, int]:
    """How often x is read for one read of the weights, and how many of its numbers a thread reads at a time; of codes
    in groups the second is how many words of eight codes it reads.

    >>> lanes(GemvLaunch(1, 512, 1), 2, 2), lanes(GemvLaunch(1, 512, 1), 2, 1), lanes(GemvLaunch(1, 512, 4), 2, 2)
    ((1, 8), (2, 8), (1, 4))
    >>> lanes(GemvLaunch(1, 1024, 1), 2, 0.5), lanes(GemvLaunch(1, 512, 1), 2, 0.5)
    ((1, 4), (1, 2))
    """
    if weight_bytes < 1:
        return 1, min(LOAD_BYTES // WORD_BYTES, max(1, launch.columns // (THREADS * launch.warps * CODES_OF_A_WORD)))
    held = launch.columns // (THREADS * launch.warps)
    lane = min(held, LOAD_BYTES // x_bytes)
    return (2 if weight_bytes < x_bytes and held >= 2 * lane else 1), lane
