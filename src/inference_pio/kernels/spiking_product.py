"""Matrix products that spikes compute by adding alone, and the same products from counts: equal bit for bit.

Weights are whole numbers with a power of two for each row, thresholds folded in. Sums stay below 2 ** 53, so float64
holds each of them exactly, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MOST_BITS = 23
"""Of a weight: a bit less than float32 has."""
LEAST_BITS = 10
EXACT_BITS = 53


def whole_weights(weight: Tensor, threshold: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """`weight` [..., out, n] times thresholds [..., n] as int32, and the exponent of each row [..., out], int32, for
    inputs that count up to `reach`.

    >>> whole, exponent = whole_weights(torch.tensor([[0.5, -3.0]]), torch.tensor([1.0, 0.5]), 15)
    >>> (whole * 2.0 ** exponent[:, None]).tolist(), exponent.tolist()
    ([[0.5, -1.5]], [-22])
    """
    if weight.is_meta:  # a plan's: 2 ms a layer less
        shapes = (weight.shape, weight.shape[:-1])
        return tuple(torch.empty(shape, dtype=torch.int32, device="meta") for shape in shapes)
    folded = weight.double() * threshold.double()[..., None, :]
    exponent = torch.frexp(folded.abs().amax(-1)).exponent - weight_bits(weight.shape[-1], reach)
    whole = (folded * power_of_two(-exponent)[..., None]).round()
    return whole.to(torch.int32), exponent.to(torch.int32)


def power_of_two(exponent: Tensor) -> Tensor:
    """2 ** exponent in float64, to the bit: `pow` of vectors of numbers may be off by one.

    >>> power_of_two(torch.tensor([3, -1])).tolist()
    [8.0, 0.5]
    """
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def weight_bits(inputs: int, reach: int) -> int:
    """How many bits weights may have, so that sums over so many inputs are exact.

    >>> weight_bits(4096, 480), weight_bits(16384, 130560)
    (23, 21)
    """
    return min(MOST_BITS, EXACT_BITS - inputs.bit_length() - reach.bit_length())


def why_not_exact(inputs: int, reach: int) -> str | None:
    """Why sums over so many inputs would not be exact, or None."""
    if weight_bits(inputs, reach) >= LEAST_BITS:
        return None
    return f"sums over {inputs} inputs that count up to {reach} leave its weights fewer than {LEAST_BITS} bits"


def from_counts(counts: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """A linear map of what was counted: one product."""
    return product(counts)


def from_spikes(trains: Iterable[tuple[Tensor, float]], product: Callable[[Tensor], Tensor]) -> Tensor:
    """The same map, spike by spike: at each step the weights of those that fire are added, shifted by what they count.

    >>> double = lambda spikes: spikes * 2
    >>> from_spikes([(torch.tensor([1.0]), 2.0), (torch.tensor([-1.0]), 1.0)], double).tolist()
    [2.0]
    """
    total: Tensor | None = None
    for spikes, weight in trains:
        if total is not None and spikes.device.type == "cpu" and not bool(spikes.any()):
            continue  # a step in which nobody fires: most steps of second neurons are
        part = product(spikes)
        total = part * weight if total is None else total.add_(part, alpha=weight)
    assert total is not None
    return total
