"""The experts of a model that may stream apart from their layers: how many, of what size, and what a plan tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from inference_pio.anatomy.decoder_mlp import Mixture, mlp_parts
from inference_pio.anatomy.parts import vision_paths, within
from inference_pio.anatomy.walk import experts, parent_of
from inference_pio.contract.byte_size import in_words
from inference_pio.streaming.expert_room import READ_AT_ONCE
from inference_pio.streaming.units import Streamable


@dataclass(frozen=True)
class Experts:
    """`found`: how many each module holds, by path; `each`: bytes of one of them; `chosen` for a token, where known.

    `lie_evenly`: every one begins where a kernel may read at once, whichever number it has.
    """

    found: dict[str, int]
    each: list[int]
    total_bytes: int
    chosen: int | None
    lie_evenly: bool

    @classmethod
    def of(cls, model: nn.Module) -> Experts:
        """Those of a model, or of its skeleton; those of a vision tower stay."""
        streamable, towers = Streamable(model), vision_paths(model)
        found = {
            path: count
            for path, _, _ in experts(model)
            if (count := streamable.experts_in(path)) and not any(within(path, tower) for tower in towers)
        }
        sizes = [streamable.nbytes(path) // count for path, count in found.items()]
        parts = [one.nbytes // count for path, count in found.items() for one in streamable.tensors_in(path)]
        chosen = {_chosen(model, path) for path in found}
        return cls(
            found, sizes, streamable.total_bytes, chosen.pop() if len(chosen) == 1 else None,
            all(part % READ_AT_ONCE == 0 for part in parts),
        )  # fmt: skip

    @property
    def counts(self) -> list[int]:
        return list(self.found.values())

    @property
    def nbytes(self) -> int:
        return sum(size * count for size, count in zip(self.each, self.counts, strict=True))


def slots_told(decision: Mapping[str, Any]) -> list[str]:
    """What a plan says of slots for experts."""
    slots, most, layers = decision["slots_per_layer"], max(decision["experts"].values()), len(decision["experts"])
    notes = [
        f"experts of {layers} layers wait in host memory ({in_words(decision['host_bytes'])}), {slots} of {most} have "
        f"slots on the device in each; {in_words(decision['memory_bytes'])} of weights are there (budget "
        f"{in_words(decision['budget_bytes'])}), with room for all experts of one layer, which a prompt may choose. "
        "The host waits for the device once a layer, to learn what a router chose."
    ]
    if (chosen := decision["chosen_per_token"]) is not None:
        each, share = chosen * layers * decision["expert_bytes"], min(slots / most, 1)
        notes.append(
            f"a token chooses {in_words(each)} of experts. How many are in slots depends on the text and is not "
            f"foretold: it is {share:.0%} if all are chosen equally often, which is assumed, and then "
            f"{in_words(round(each * (1 - share)))} are copied for a token. The status counts."
        )
    return notes


def _chosen(model: nn.Module, path: str) -> int | None:
    above, _ = parent_of(model, path)
    parts = mlp_parts(above)
    return parts.rule.top_k if isinstance(parts, Mixture) else None
