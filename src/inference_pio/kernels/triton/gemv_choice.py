"""Which launch a product of a few rows gets before anything is timed."""

from __future__ import annotations

from dataclasses import replace

from inference_pio.kernels.triton.gemv_launch import (
    HELD,
    LOAD_BYTES,
    MATRIX_COLUMNS,
    MATRIX_ROWS,
    THREADS,
    WORD_BYTES,
    GemvLaunch,
    takes_parts,
)
from inference_pio.kernels.triton.group_codes import CODES_OF_A_WORD
from inference_pio.kernels.triton.launch import HOPPER, Limits
from inference_pio.kernels.triton.overlap import FIRST_OVERLAPPING

PROGRAMS = 4
"""Programs a multiprocessor below which a program takes fewer rows: they come and go, and shares even out."""
BYTES_UNDER_WAY = 32 * 1024
"""Weights that a multiprocessor waits for at any time, in tiles and the next ones: 20 KB are 3 TB/s at 900 ns."""
MOST_RESIDENT = 32
MOST_BY_THREADS, MOST_CODES_BY_THREADS = 2, 1
"""Rows of x up to which threads multiply, for weights of two bytes and of one. An H100 has time for 19 instructions of
a warp while 64 bytes come from memory: by threads 32 numbers cost 10 with 1 or 2 rows of x, 12 with 4, 20 with 8.
Measured with 4 rows, weights 6144 x 2560: 1.8 TB/s by threads, 2.2 by matrix units."""
TILES = 2
"""Tiles of 16 rows a multiprocessor below which rows of codes in groups are cut into parts."""
HELD_FP8_ROWS = 512
"""Rows of fp8 a multiprocessor from which one row of x goes by matrix units: on an H100 151936 x 2560 take 139 us so,
and 163 by threads, which are faster where rows are few."""
WARPS_WANTED = 24
"""Warps that a multiprocessor needs for unpacking codes as fast as they come, four instructions each."""
EXACT_WEIGHTS, EXACT_PROGRAMS = 32, 8
"""Weights in 12 bits that a thread makes in one step; programs of a multiprocessor."""
EXACT_COLUMNS, FEW_EXACT_ROWS = (512, 1024), 32
"""Columns of a step of such weights for many rows, and for fewer than so many a multiprocessor. Measured on an H100 in
steps of whole plain ones: 6144 x 2560 takes 10.8 us by 512 and 13.4 by 1024, gated 19456 x 2560 30.3 and 34.8; 2560 x
4096 takes 9.5 and 7.9, 2560 x 9728 takes 19.7 and 17.0. As halves of steps 31.7, 8.1 and 17.3, the last two by two
warps, where one takes 8.4 and 19.6."""
FOLDS = (1, 2, 4)
"""Steps of weights in 12 bits that may stand for one of plain ones, each with sums of its own."""
COLUMNS = (256, 512, 1024, 2048)

LEAST_COLUMNS, HELD_NUMBERS = 256, 2048
"""Numbers of two bytes that a warp reads in one load each, and those that it may hold of one step: 64 a thread."""
SHORT_ROW, MIDDLE_ROW = 1024, 4096
"""Numbers of a row that a warp reads before it waits for x, and those that two warps do."""
MANY_ROWS, MEDIUM_ROWS, SCARCE_ROWS = 40, 24, 8
"""Rows a multiprocessor from which a program takes two of them by 512, those from which it takes two short ones whole,
and those below which rows alone do not keep enough weights on their way."""

MEASURED_CODES = {(6144, 2560): GemvLaunch(4, 512, 1), (2560, 9728): GemvLaunch(1, 2048, 4)}
"""For one row of x and codes [rows, columns] of one byte, of about 60 on an H100: 10.2 us in int8 and 9.5 in fp8 where
two warps take 13.7 and 10.3; 13.6 and 13.0. On GPUs before it the first would spill."""
FEW_ROWS = 32
"""Rows of codes a multiprocessor below which a program takes one, so that there are warps enough to unpack them: 2560 x
4096 in 5.6 us on an H100, and in 11.6 two by two."""


def choose_gemv_launch(
    limits: Limits, batch: int, rows: int, inputs: int, weight_bytes: float, *, gated: bool = False,
    group: int = 0, dependent: bool = False, bfloat16: bool = True, fp8: bool = False,
) -> GemvLaunch:  # fmt: skip
    """The launch for `batch` rows of x and weights [rows, inputs] in all (gate and up together) of elements of
    `weight_bytes`, or codes in groups of `group`. `dependent` is a wish, which GPUs that cannot run kernels so do not
    get, nor launches of matrix units whose tiles fill a multiprocessor: measured on an H100 with 8 rows of Qwen3-4B,
    1,854 tokens/s with and 2,056 without. Those of codes in groups and few rows are small: 39.3 us a layer, 41.2.
    `bfloat16`: x is; `fp8`: weights of one byte are.

    >>> from inference_pio.kernels.triton.launch import AMPERE, HOPPER
    >>> choose_gemv_launch(HOPPER, 1, 151936, 2560, 2)
    GemvLaunch(rows=2, columns=512, warps=1, stages=0, dependent=False, parts=1)
    >>> choose_gemv_launch(AMPERE, 8, 19456, 2560, 2, gated=True, dependent=True)
    GemvLaunch(rows=16, columns=256, warps=2, stages=3, dependent=False, parts=1)
    """
    hopper, launch = limits.capability >= HOPPER.capability, None
    if batch == 1 and weight_bytes == 1 and hopper:
        launch = MEASURED_CODES.get((rows, inputs))
    if group == MATRIX_COLUMNS and bfloat16:
        launch = _of_whole_groups(limits, batch, rows, inputs, gated)
    elif group:
        launch = _of_groups(limits, batch, rows, inputs, gated)
    elif fp8 and bfloat16 and batch == 1 and rows >= HELD_FP8_ROWS * limits.multiprocessors and inputs % 64 == 0:
        launch = GemvLaunch(MATRIX_ROWS, 128, 2, HELD)
    elif batch == 1 and weight_bytes == 2:
        launch = _of_one_row(limits, rows, inputs, gated)
    elif launch is None and bfloat16 and batch > (MOST_BY_THREADS if weight_bytes > 1 else MOST_CODES_BY_THREADS):
        launch = _by_matrix_units(limits, rows, inputs, weight_bytes, gated)
    launch = launch or _by_rule(limits, batch, rows, inputs, int(weight_bytes), gated)
    small = not launch.stages or (batch <= 2 and (group > 0 or launch.stages == HELD))
    may = limits.capability >= FIRST_OVERLAPPING and small
    return replace(launch, dependent=dependent and may)


def choose_exact_launch(
    limits: Limits, rows: int, columns: int, *, gated: bool = False, dependent: bool = False
) -> GemvLaunch:
    """The launch for weights in exponent12, `rows` in all, with the bits of plain ones in steps of `columns`.

    Its own are fewer where those are many: 512 for many rows, 1,024 for few. A thread makes 32 weights of a step, half
    of them of a gate, where that leaves programs enough; of few rows 16, where the sums of parts take registers too.

    >>> from inference_pio.kernels.triton.launch import HOPPER
    >>> choose_exact_launch(HOPPER, 6144, 512), choose_exact_launch(HOPPER, 2560, 2048).columns
    (GemvLaunch(rows=2, columns=512, warps=1, stages=0, dependent=False, parts=1), 1024)
    """
    few = rows < FEW_EXACT_ROWS * limits.multiprocessors
    own = max(min(columns, EXACT_COLUMNS[few]), columns // FOLDS[-1])
    warps = max(1, own // (EXACT_WEIGHTS * THREADS))
    taken = max(1, EXACT_WEIGHTS * THREADS * warps // own // (2 if gated else 1))
    warps *= 2 if few and own < columns else 1
    while taken > 1 and rows // taken < EXACT_PROGRAMS * limits.multiprocessors:
        taken //= 2
    return GemvLaunch(taken, own, warps, dependent=dependent and limits.capability >= FIRST_OVERLAPPING)


def _of_one_row(limits: Limits, rows: int, inputs: int, gated: bool) -> GemvLaunch:
    """One row of x, weights of two bytes: short rows whole, before x is there; long ones in steps that fill memory.

    Measured on an H100 with the shapes of Qwen3 of 1.7B, 4B and 8B, whole and in two factors, 25 in all, of 19 to 57
    launches each: at most 6% from the fastest. Weights of Qwen3-4B in turn take 2,621 us so, and 2,800 in steps that
    put 32 KB a multiprocessor on their way; with its MLPs in two factors 1,539 and 1,940.
    """
    shared = rows / limits.multiprocessors
    whole = max(LEAST_COLUMNS, 1 << (inputs - 1).bit_length())
    if gated:
        return GemvLaunch(2, 512, 1) if LEAST_COLUMNS < inputs < SHORT_ROW else GemvLaunch(1, min(whole, 1024), 1)
    if inputs <= SHORT_ROW:
        taken = HELD_NUMBERS // whole
        while taken > 1 and rows // taken < PROGRAMS * limits.multiprocessors:
            taken //= 2
        return GemvLaunch(taken, whole, 1)
    if shared >= MANY_ROWS:
        return GemvLaunch(2, 512, 1)
    if shared >= MEDIUM_ROWS and inputs <= 2 * SHORT_ROW:
        return GemvLaunch(2, 1024, 1)
    if inputs > MIDDLE_ROW:
        return GemvLaunch(1, 2048, 4 if shared >= SCARCE_ROWS else 8)
    return GemvLaunch(1, 2048, 1) if shared >= SCARCE_ROWS else GemvLaunch(1, whole, 2)


def _by_matrix_units(limits: Limits, rows: int, inputs: int, weight_bytes: int, gated: bool) -> GemvLaunch:
    programs = rows // (MATRIX_ROWS * (2 if gated else 1) * limits.multiprocessors)
    # Warps share what is done to x, but each takes all the weights: of codes that is most of the work.
    warps = 1 if programs >= 6 else 2 if programs >= 2 or weight_bytes == 1 else 4
    while warps > 1 and inputs % (MATRIX_COLUMNS * warps):
        warps //= 2
    return GemvLaunch(MATRIX_ROWS, MATRIX_COLUMNS * warps, warps, stages=3 if gated else 4)


def _of_whole_groups(limits: Limits, batch: int, rows: int, inputs: int, gated: bool) -> GemvLaunch:
    """Matrix units: warps share the groups of some rows, which a row or two of x leave in registers.

    Measured on an H100 with the shapes of Qwen3-4B and one row of x: 5.4 us for 2560 x 4096, 11.0 for 2560 x 9728, 7.0
    for 6144 x 2560 and 14.3 gated; through shared memory 6.3, 11.2, 7.8 and 15.0. With 8 rows of x, 32 rows and 4
    warps: 11 to 37 us.
    """
    if batch > 2:
        groups = 4
        while groups > 1 and inputs < 2 * groups * MATRIX_COLUMNS:
            groups //= 2
        return GemvLaunch(2 * MATRIX_ROWS, MATRIX_COLUMNS * groups, groups, stages=3)
    parts = parts_by_rule(limits, batch, rows, inputs, gated)
    warps = 2 if gated else 4
    while warps > 1 and inputs < warps * parts * MATRIX_COLUMNS:
        warps //= 2
    if limits.capability < HOPPER.capability and inputs % (warps * parts * MATRIX_COLUMNS):
        parts = 1  # there the last step, of which some warps have none, costs more registers than a thread has
    return GemvLaunch(MATRIX_ROWS // parts, MATRIX_COLUMNS * warps, warps, HELD, parts=parts)


def parts_by_rule(limits: Limits, batch: int, rows: int, inputs: int, gated: bool) -> int:
    """Parts that rows of whole groups are cut into: some where there are fewer tiles of 16 rows than two a
    multiprocessor, whose time is then that of the few which have one more.

    Measured on an H100, one row of x: 2560 x 4096 in 5.4 us by two parts and 5.2 to 5.4 by four, where whole rows take
    5.9; 2560 x 9728 in 10.9 and 10.8, whole 11.0.
    """
    tiles = rows // (MATRIX_ROWS * (2 if gated else 1))
    if batch > 2 or tiles >= TILES * limits.multiprocessors:
        return 1
    return next((parts for parts in (2, 4) if takes_parts(parts, batch, inputs)), 1)


def _of_groups(limits: Limits, batch: int, rows: int, inputs: int, gated: bool) -> GemvLaunch:
    together = 2 if gated else 1
    taken = 4 // together if batch <= 2 else 2 // together
    while taken > 1 and rows // (taken * together) < PROGRAMS * limits.multiprocessors:
        taken //= 2
    programs = max(1, rows // (taken * together * limits.multiprocessors))
    words = LOAD_BYTES // WORD_BYTES if inputs % (THREADS * LOAD_BYTES * 2) == 0 else 2
    warps = 1
    while warps < 8 and programs * warps < WARPS_WANTED and inputs >= 2 * warps * THREADS * words * CODES_OF_A_WORD:
        warps *= 2
    return GemvLaunch(taken, THREADS * warps * words * CODES_OF_A_WORD, warps)


def _by_rule(limits: Limits, batch: int, rows: int, inputs: int, weight_bytes: int, gated: bool) -> GemvLaunch:
    together = 2 if gated else 1
    if weight_bytes * batch * together == 1 and rows < FEW_ROWS * limits.multiprocessors and inputs >= COLUMNS[-1]:
        return GemvLaunch(1, COLUMNS[-1], 2)
    # What is read of x is used for every row of a program, which saves time: with more rows of x, and with codes, of
    # which twice as many come from memory in a time.
    taken = 4 // together if batch > 2 else 2 if batch == 2 or weight_bytes * together == 1 else 1
    while taken > 1 and rows // (taken * together) < PROGRAMS * limits.multiprocessors:
        taken //= 2
    programs = -(-rows // (taken * together))
    resident = max(1, min(MOST_RESIDENT, programs // limits.multiprocessors))
    wanted = BYTES_UNDER_WAY // (2 * resident * taken * together * weight_bytes)
    least = THREADS * LOAD_BYTES // weight_bytes
    columns = max((size for size in COLUMNS if size <= wanted), default=least)
    while columns > least and (inputs % columns or batch > MOST_BY_THREADS):  # a masked tail is read for nothing
        columns //= 2
    columns = max(columns, least)
    loads = 2 if batch == 1 else 1  # of 16 bytes that a thread has under way, of each row
    return GemvLaunch(taken, columns, max(1, min(8, columns * weight_bytes // (THREADS * LOAD_BYTES * loads))))
