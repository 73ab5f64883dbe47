"""How much of a model some of its modules are: parameters and bytes, in all and by role."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from inference_pio.anatomy.roles import roles_of


@dataclass(frozen=True)
class Coverage:
    """Parameters and bytes of the whole model, of the modules meant, and of both by role."""

    parameters: int
    nbytes: int
    covered_parameters: int
    covered_nbytes: int
    by_role: dict[str, tuple[int, int]]
    """By role: how many of its parameters are covered, and how many there are."""

    @property
    def share(self) -> float:
        """The share of all parameters that is covered."""
        return self.covered_parameters / max(self.parameters, 1)

    @property
    def share_of_bytes(self) -> float:
        return self.covered_nbytes / max(self.nbytes, 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "share_of_parameters": round(self.share, 6), "share_of_bytes": round(self.share_of_bytes, 6),
            "parameters": self.covered_parameters, "of_parameters": self.parameters,
            "roles": {role: {"parameters": some, "of": of} for role, (some, of) in self.by_role.items()},
        }  # fmt: skip

    def __str__(self) -> str:
        roles = [f"{role} {some / of:.0%}" for role, (some, of) in self.by_role.items() if of]
        return f"{self.share:.1%} of the parameters and {self.share_of_bytes:.1%} of the bytes ({', '.join(roles)})"


def coverage_of(model: nn.Module, paths: Collection[str]) -> Coverage:
    """What the modules at `paths` hold of a model; a tensor that several hold counts once, for the first.

    >>> print(coverage_of(nn.Sequential(nn.Linear(3, 3, bias=False), nn.Embedding(3, 1)), ["0"]))
    75.0% of the parameters and 75.0% of the bytes (unknown 100%, embedding 0%)
    """
    seen: set[int] = set()
    total = total_bytes = covered = covered_bytes = 0
    by_role: dict[str, tuple[int, int]] = {}
    for path, role in roles_of(model).items():
        held = model.get_submodule(path).parameters(recurse=False)
        own = [parameter for parameter in held if id(parameter) not in seen]
        seen.update(map(id, own))
        count, nbytes = sum(one.numel() for one in own), sum(one.nbytes for one in own)
        meant = path in paths
        total, total_bytes = total + count, total_bytes + nbytes
        covered, covered_bytes = covered + count * meant, covered_bytes + nbytes * meant
        some, of = by_role.get(role, (0, 0))
        by_role[role] = some + count * meant, of + count
    return Coverage(total, total_bytes, covered, covered_bytes, by_role)
