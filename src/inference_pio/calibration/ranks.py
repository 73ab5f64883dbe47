"""How many numbers each matrix keeps in two factors, so that a share of all goes where it costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from inference_pio.contract.byte_size import in_words

WHOLE = 0
"""The rank of a matrix that stays as it is."""
MOST_SHARE = 0.9
"""Two factors of more numbers than this share of the matrix's are no faster than the matrix."""
ALIGN, LEAST_ALIGN, RANKS = 128, 8, 16
"""Ranks are multiples of 128, which divide into steps that a kernel reads whole; where a matrix would have less than 16
of them, of less. The MLPs of Qwen3-4B take 1,525 us a token by ranks of 640 on an H100, 1,539 by 704 and 576."""
TRIES = 100
LEAST_SAVED_BYTES = {"cpu": 2**20, "cuda": 6 * 2**20}
"""What a second product costs. On 2 CPU cores half of 1024 x 1024 numbers in float32 is 1.45 times as fast for one row,
half of 512 x 512 no faster (`benchmarks/factored_layers.py --width`); on a GPU it is 2 us, by its bandwidth."""


@dataclass(frozen=True)
class Rank:
    """One way to keep a matrix: how many numbers it takes, codes counted as the numbers of as many bytes, and what is
    lost."""

    rank: int
    numbers: float
    loss: float = 0.0
    second: float = 0.0
    """What the time of a second product counts, in numbers."""


def factor_numbers(outputs: int, inputs: int, rank: int, pivoted: bool) -> int:
    """The numbers of two factors; pivoted ones are fewer by the square of the rank.

    >>> factor_numbers(8, 6, 2, pivoted=False), factor_numbers(8, 6, 2, pivoted=True)
    (28, 24)
    """
    return rank * (outputs + inputs - (rank if pivoted else 0))


def align_of(outputs: int, inputs: int, asked: int | None = None) -> int:
    """What ranks of a matrix are multiples of.

    >>> align_of(4096, 2560), align_of(4096, 1024), align_of(32, 16), align_of(4096, 2560, asked=32)
    (128, 64, 8, 32)
    """
    if asked is not None:
        return asked
    align = ALIGN
    while align > LEAST_ALIGN and min(outputs, inputs) < RANKS * align:
        align //= 2
    return align


def ranks_of(outputs: int, inputs: int, align: int, pivoted: bool, beside: float = 0) -> list[int]:
    """The ranks that make a matrix small enough to be faster, smallest first, where as much as `beside` numbers stands
    beside the factors."""
    most = MOST_SHARE * outputs * inputs - beside
    wanted = range(align, min(outputs, inputs) + 1, align)
    return [rank for rank in wanted if factor_numbers(outputs, inputs, rank, pivoted) <= most]


def rank_at(outputs: int, inputs: int, ratio: float, align: int, pivoted: bool, beside: float = 0) -> int | None:
    """The largest rank at which `ratio` of a matrix's numbers goes; None where `align` allows none.

    >>> rank_at(1024, 256, 0.5, 8, pivoted=False), rank_at(1024, 256, 0.5, 8, pivoted=True), rank_at(8, 8, 0.5, 8, True)
    (96, 112, None)
    """
    left = (1 - ratio) * outputs * inputs - beside
    fitting = [
        rank
        for rank in ranks_of(outputs, inputs, align, pivoted, beside)
        if factor_numbers(outputs, inputs, rank, pivoted) <= left
    ]
    return fitting[-1] if fitting else None


def second_product(device: torch.device, element_size: int) -> float:
    """The time of a second product on a device, as how many numbers could be read in it.

    >>> second_product(torch.device("cuda"), element_size=2)
    3145728.0
    """
    return LEAST_SAVED_BYTES.get(device.type, 0) / element_size


def why_no_faster(saved_bytes: int, device: torch.device) -> str | None:
    """Why two factors, which read so many bytes less, would be no faster than their matrix on a device; or None."""
    least = LEAST_SAVED_BYTES.get(device.type, 0)
    if saved_bytes >= least:
        return None
    return (
        f"two factors would read {in_words(saved_bytes)} less, which a second product costs more than it saves here "
        f"({in_words(least)} at least; refuse_slower=false takes it)"
    )


def allocate_ranks(choices: Mapping[str, Sequence[Rank]], numbers: float) -> dict[str, int]:
    """One rank for each matrix, so that all of them take at most `numbers`, or the least that they can, and lose least.

    One price of a number is found at which each matrix, choosing for itself, keeps to that; at this price it also pays
    for its second product, so that a matrix of which little goes rather stays whole.

    >>> steep, flat = ([Rank(WHOLE, 8), Rank(2, 4, loss)] for loss in (9.0, 1.0))
    >>> allocate_ranks({"a": steep, "b": flat}, 12)
    {'a': 0, 'b': 2}
    """

    def at(price: float) -> dict[str, Rank]:
        return {
            name: min(ways, key=lambda way: way.loss + price * (way.numbers + way.second))
            for name, ways in choices.items()
        }

    most = max([way.loss for ways in choices.values() for way in ways] + [1e-30])
    low, high = 1e-18 * most, most  # at a price of the largest loss each takes as few numbers as it can
    for _ in range(TRIES):
        price = (low * high) ** 0.5
        if sum(way.numbers for way in at(price).values()) > numbers:
            low = price
        else:
            high = price
    return {name: way.rank for name, way in at(high).items()}
