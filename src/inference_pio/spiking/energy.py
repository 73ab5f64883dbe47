"""What a spiking model's additions would take beside the dense model's multiplications, by prices of operations.

An estimate, not a measurement. Norms, softmax, gating, rotation, the residual stream and whatever layers are not
converted are the same on both sides and counted on neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prices:
    """Picojoules of an addition (`add`) and of a multiplication with its addition (`multiply`), bytes of a number."""

    multiply: float
    add: float
    number_bytes: int


PRESETS = {
    "45nm fp32": Prices(multiply=4.6, add=0.9, number_bytes=4),
    "45nm fp16": Prices(multiply=1.5, add=0.4, number_bytes=2),
    "45nm int8": Prices(multiply=0.23, add=0.03, number_bytes=1),
}
"""45 nm figures of Horowitz (ISSCC 2014), as SNN papers use them."""
PICOJOULES_A_BYTE = 24.96
"""Of memory traffic, from or to an on-chip memory; far more from DRAM, on both sides."""


def energy(counted: Mapping[str, int]) -> dict[str, Any]:
    """Of what a `Tally` counted, by preset: microjoules of both sides and their ratio, with memory traffic and without.

    A shifted spike of the radix coding is paid as an addition. Traffic: the dense model reads a number for every
    multiplication, each value, and writes each result; the spiking one reads a number for every addition, reads and
    writes each potential at every step, and writes each result. No number is read once for many tokens on either side.

    >>> counted = {"activations": 2, "spikes": 1, "accumulates": 10, "multiplies": 20, "neuron_steps": 8, "results": 10}
    >>> energy(counted)["45nm fp32"]["compute_ratio"]
    0.0978
    """
    return {name: _under(prices, counted) for name, prices in PRESETS.items()}


def _under(prices: Prices, counted: Mapping[str, int]) -> dict[str, float]:
    dense, spiking = counted["multiplies"] * prices.multiply, counted["accumulates"] * prices.add
    moved = prices.number_bytes * PICOJOULES_A_BYTE
    dense_moved = (counted["multiplies"] + counted["activations"] + counted["results"]) * moved
    spiking_moved = (counted["accumulates"] + 2 * counted["neuron_steps"] + counted["results"]) * moved
    return {
        "dense_uj": _micro(dense), "spiking_uj": _micro(spiking), "compute_ratio": _ratio(spiking, dense),
        "dense_uj_with_memory": _micro(dense + dense_moved), "spiking_uj_with_memory": _micro(spiking + spiking_moved),
        "ratio_with_memory": _ratio(spiking + spiking_moved, dense + dense_moved),
    }  # fmt: skip


def _micro(picojoules: float) -> float:
    return round(picojoules / 1e6, 4)


def _ratio(spiking: float, dense: float) -> float:
    return round(spiking / dense, 4) if dense else 0.0
