"""A verdict: what a quality guard measured, what each step costs, and which steps it took back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class StepCost:
    """What the answers gain where one step alone is taken away from all others.

    `kl_bought` is the divergence in nats a token that goes with it, `perplexity_ratio_bought` what goes from the
    perplexity ratio; below zero the step made up for others. `weight_bytes_saved` is what the step saves.
    """

    name: str
    order: bool
    kl_bought: float
    perplexity_ratio_bought: float
    weight_bytes_saved: int

    def __str__(self) -> str:
        saved = f", {self.weight_bytes_saved / 1e6:,.1f} MB of weights saved" if self.weight_bytes_saved else ""
        return (
            f"{self.name} costs KL {self.kl_bought:.2g} nats/token and {self.perplexity_ratio_bought:+.2g} of the "
            f"perplexity ratio{saved}"
        )


@dataclass(frozen=True)
class Verdict:
    """How far a model as it stands is from the unmodified one, on which text, and how it was brought there.

    `costs` are of all steps together, before one was taken back; empty where nothing broke a bound. `taken_back` gives
    for each step that went the reason, in the order in which they went.
    """

    bounds: Mapping[str, float]
    source: str
    tokens: int
    window: int
    kl_nats_per_token: float
    perplexity_ratio: float
    kl_before: float
    perplexity_ratio_before: float
    costs: tuple[StepCost, ...] = ()
    taken_back: Mapping[str, str] = field(default_factory=dict)
    asked: str = field(default="", repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the status, reports and files."""
        plain = {key: value for key, value in asdict(self).items() if key != "asked"}
        return {**plain, "costs": [asdict(cost) for cost in self.costs]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """A verdict read back. Raises TypeError, ValueError or LookupError for what is none."""
        costs = tuple(StepCost(**_with_numbers(cost, StepCost)) for cost in data["costs"])
        return cls(**{**_with_numbers(data, cls), "costs": costs})


def _with_numbers(data: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Infinity and NaN, which JSON holds as words, as the numbers they are."""
    numbers = {one.name for one in fields(kind) if one.type == "float"}
    return {name: float(value) if name in numbers else value for name, value in data.items()}
