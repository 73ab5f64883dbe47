"""How the kernels of a decode step with experts or latents are launched: predicted; large ones are near the ceiling.

Plain matrix-vector products were fastest with one row and 512 columns a program, and 1 to 4 warps; what is predicted
of these stands in benchmarks/LOG.md, and measured numbers replace it.
"""

from __future__ import annotations

from dataclasses import dataclass

LANES = 32
WIDE = 16
"""Bytes of the widest load."""


@dataclass(frozen=True)
class RowLaunch:
    """`rows` of the result a program, `columns` of the weights a step, shared by `warps`; powers of two."""

    rows: int
    columns: int
    warps: int


def choose_route_launch(width: int) -> RowLaunch:
    """The router's: few bytes in all, so a program asks for all of its own at a time.

    >>> choose_route_launch(2048), choose_route_launch(5120)
    (RowLaunch(rows=1, columns=2048, warps=4), RowLaunch(rows=1, columns=8192, warps=8))
    """
    columns = max(16, 1 << (width - 1).bit_length())
    return RowLaunch(1, columns, 4 if columns <= 2048 else 8)


def choose_gate_up_launch(width: int, element_bytes: float) -> RowLaunch:
    """The first product of an expert, over tokens `width` wide; weights of `element_bytes`. Of half a byte, two rows
    share what is done to a token, and a thread has 32 columns.

    >>> choose_gate_up_launch(2048, 2), choose_gate_up_launch(2048, 1)
    (RowLaunch(rows=1, columns=512, warps=2), RowLaunch(rows=1, columns=1024, warps=2))
    >>> choose_gate_up_launch(2048, 0.5)
    RowLaunch(rows=2, columns=1024, warps=1)
    """
    if element_bytes < 1:
        columns = max(32, _columns(width, 1024))
        return RowLaunch(2, columns, 1)
    return RowLaunch(1, _columns(width, 1024 // int(element_bytes)), 2)


def choose_down_launch(intermediate: int, slots: int, element_bytes: float) -> RowLaunch:
    """The second product, where a step takes `columns` of each of the chosen experts.

    >>> choose_down_launch(768, 8, 2), choose_down_launch(1536, 4, 2)
    (RowLaunch(rows=1, columns=256, warps=4), RowLaunch(rows=1, columns=512, warps=4))
    >>> choose_down_launch(768, 8, 0.5), choose_down_launch(1536, 4, 0.5)
    (RowLaunch(rows=4, columns=256, warps=4), RowLaunch(rows=2, columns=512, warps=2))

    Of half a byte measured on an H100, 8 of 128 experts of 2048 x 768: 8.5 us with 4 rows and 4 warps, 13.4 with 2 and
    2, the best of 47. With fewer experts loads would become narrower.
    """
    if element_bytes < 1:
        taken = 4 if slots >= 8 else 2
        return RowLaunch(taken, max(32, _columns(intermediate, max(32, 2048 // slots))), taken)
    element_bytes = int(element_bytes)
    step = max(2048 // slots, LANES * WIDE // element_bytes)
    return RowLaunch(1, _columns(intermediate, step), 4)


def choose_absorb_launch(nope: int, width: int) -> RowLaunch:
    """Here `rows` of a head's matrix are a step, and `columns` are what one program gives: 128 bytes of each row.

    >>> choose_absorb_launch(192, 512)
    RowLaunch(rows=64, columns=64, warps=4)
    """
    return RowLaunch(_columns(nope, 64), _columns(width, 64), 4)


def choose_expand_launch(width: int) -> RowLaunch:
    """A row is short, so a program has several.

    >>> choose_expand_launch(512)
    RowLaunch(rows=4, columns=512, warps=2)
    """
    return RowLaunch(4, _columns(width, 512), 2)


def _columns(width: int, most: int) -> int:
    """At most so many columns; fewer, down to a quarter, where that leaves nothing over at the end of a row."""
    most = min(most, max(16, 1 << (width - 1).bit_length()))
    columns = most
    while columns > most // 4 and width % columns:
        columns //= 2
    return columns if width % columns == 0 else most
