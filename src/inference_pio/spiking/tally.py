"""What the neurons of a model have done: values that were told, spikes that told them, additions these led to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Number = int | Tensor
PARTS = ("activations", "spikes", "accumulates", "multiplies", "neuron_steps", "results")
"""`multiplies` are those of the dense model in the same place, `neuron_steps` how often a potential was looked at."""
SHARE = "share"
"""The part of a path that tells attention weights: of their neurons nearly all are silent, so they are told apart."""


@dataclass
class Tally:
    """One for all layers of a model, and copied with it; what was counted on a device is waited for when it is read.

    >>> tally = Tally()
    >>> tally.add("q_proj", activations=4, spikes=2, accumulates=6, multiplies=12)
    >>> tally.add("attn.share", activations=4, spikes=0, accumulates=0, multiplies=8)
    >>> tally.total()["accumulates"], tally.per_activation(), tally.per_activation(shares=False)
    (6, 0.25, 0.5)
    """

    layers: dict[str, dict[str, Number]] = field(default_factory=dict)

    def add(self, path: str, **counted: Number) -> None:
        """Count one call of a layer, or of one side of an attention product."""
        found = self.layers.setdefault(path, dict.fromkeys(PARTS, 0))
        for part, number in counted.items():
            found[part] = found[part] + number

    def clear(self) -> None:
        self.layers.clear()

    def total(self) -> dict[str, int]:
        return {part: sum(int(counted[part]) for counted in self.layers.values()) for part in PARTS}

    def per_activation(self, path: str | None = None, *, shares: bool = True) -> float | None:
        """Spikes a value, of one layer or of all, with attention weights or without; None before anything was told."""
        names = [name for name in self.layers if path in (None, name) and (shares or not name.endswith(f".{SHARE}"))]
        of = [self.layers[name] for name in names]
        told = sum(int(counted["activations"]) for counted in of)
        return sum(int(counted["spikes"]) for counted in of) / told if told else None

    def to_json(self) -> dict[str, Any]:
        rates = {path: self.per_activation(path) for path in self.layers}
        return {
            "spikes_per_activation": _rounded(self.per_activation()),
            "spikes_per_activation_without_shares": _rounded(self.per_activation(shares=False)),
            "spikes_per_activation_by_layer": {path: _rounded(rate) for path, rate in rates.items()},
            **self.total(),
        }


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 4)
