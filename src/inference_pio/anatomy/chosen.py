"""Which modules a user means: by role or by pattern of their paths, and which of the patterns mean none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import get_args

from inference_pio.anatomy.blocks import Role

ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Chosen:
    """`targets` are roles ("mlp.down", or "mlp" for all of its kind) or path patterns; `skip` are path patterns.

    A pattern means what it matches and all below that. Without targets everything is meant that `skip` leaves.

    >>> chosen = Chosen(targets=("mlp", "*.0.attn"), skip=("*.1",))
    >>> chosen.why_not("layers.0.mlp.up", "mlp.gate_up"), chosen.why_not("layers.0.attn.q", "attention.qkv")
    (None, None)
    >>> chosen.why_not("layers.1.mlp.up", "mlp.gate_up"), chosen.why_not("layers.2.attn.q", "attention.qkv")
    ("`skip` names it ('*.1')", 'it is not among the targets')
    """

    targets: Sequence[str] | None = None
    skip: Sequence[str] = ()

    def why_not(self, path: str, role: str) -> str | None:
        """Why a module is not meant; None for one that is."""
        for pattern in self.skip:
            if _matches(pattern, path):
                return f"`skip` names it ({pattern!r})"
        if self.targets is None or any(_means(target, path, role) for target in self.targets):
            return None
        return "it is not among the targets"

    def by_role(self, role: str) -> bool:
        """Whether the targets name this very role."""
        return role in (self.targets or ())

    def unmatched(self, roles: Mapping[str, str]) -> list[str]:
        """Targets and skips that mean nothing among modules with these roles, by path."""
        lost = [one for one in self.targets or () if not any(_means(one, *place) for place in roles.items())]
        return lost + [one for one in self.skip if not any(_matches(one, path) for path in roles)]


def _means(target: str, path: str, role: str) -> bool:
    if any(known == target or known.startswith(f"{target}.") for known in ROLES):
        return role == target or role.startswith(f"{target}.")
    return _matches(target, path)


def _matches(pattern: str, path: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")
