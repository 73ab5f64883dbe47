"""Which backend serves which phase of one attention: chosen from the table, checked on this machine, said in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from inference_pio.compat import why_no_warp_roles
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.attention_backends import HeadShape, capability_of, lacks
from inference_pio.kernels.attention_check import why_it_fails
from inference_pio.kernels.attention_choice import FUSED, Phase, candidates
from inference_pio.kernels.triton.flash_launch import choose_roles_launch
from inference_pio.kernels.triton.launch import HOPPER

AUTO = "auto"
LIKE = {Phase.CAPTURED_PREFILL: Phase.PREFILL}
"""The phase of which another is a kind: served like it where nothing else was chosen."""
Steps = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Serving:
    """By phase: from how many keys on which backend serves.

    >>> serving = Serving.from_json({"decode": [[0, "flash"], [16384, "triton"]]})
    >>> serving.backend(Phase.DECODE, 16383), serving.backend(Phase.DECODE, 16384), serving.backend(Phase.CHUNK, 9)
    ('flash', 'triton', 'fused')
    """

    steps: dict[Phase, Steps]

    def backend(self, phase: Phase, keys: int) -> str:
        """The backend of a call; torch's own choice for a phase that nothing was chosen for."""
        found = FUSED
        for first, backend in self.steps.get(phase) or self.steps.get(LIKE.get(phase, phase), ()):
            if keys >= first:
                found = backend
        return found

    @property
    def backends(self) -> set[str]:
        return {backend for steps in self.steps.values() for _, backend in steps}

    def said(self, phases: Collection[Phase]) -> str:
        """The backends in words: one name where one serves all, and no phase that is served like that of which it is
        a kind.

        >>> Serving({Phase.PREFILL: ((0, "cudnn"),), Phase.DECODE: ((0, "flash"), (9, "triton"))}).said(Phase)
        'prefill cudnn; decode flash, triton from 9 keys'
        """
        alike = {phase for phase, other in LIKE.items() if self.steps.get(phase) == self.steps.get(other)}
        shown = {phase: steps for phase, steps in self.steps.items() if phase in phases and phase not in alike}
        if len({backend for steps in shown.values() for _, backend in steps}) == 1:
            return next(iter(shown.values()))[0][1]
        told = []
        for phase, steps in shown.items():
            names = [backend if not first else f"{backend} from {first} keys" for first, backend in steps]
            told.append(f"{phase} {', '.join(names)}")
        return "; ".join(told)

    def to_json(self) -> dict[str, Any]:
        return {phase.value: [list(step) for step in steps] for phase, steps in self.steps.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Serving:
        return cls({Phase(phase): tuple((first, name) for first, name in steps) for phase, steps in data.items()})


@dataclass(frozen=True)
class PassedOver:
    """A backend that stood before the one that serves a phase, and why it does not."""

    backend: str
    phase: Phase
    reason: str
    checked: bool
    """Whether it failed the check, and not for what is known of it."""


def choose_serving(
    shape: HeadShape, dtype: torch.dtype, device: torch.device, phases: Sequence[Phase], *, first: str | None = None,
    check: bool = False,
) -> tuple[Serving, list[PassedOver]]:  # fmt: skip
    """The best backend that serves, for every phase; `first` stands before the table. Only a `check` runs any.

    Raises InvalidSetting where even torch's own choice fails the check.
    """
    passed: dict[tuple[str, Phase], PassedOver] = {}
    serving: dict[Phase, Steps] = {}
    capability = capability_of(device)
    by_roles = capability > 0 and why_no_warp_roles() is None  # which loads Triton
    for phase in phases:
        steps = []
        like = LIKE.get(phase, phase)  # what computes both alike is checked once
        found = candidates(capability, phase, shape.head_dim, by_roles=by_roles)
        for keys, backends in found:
            for backend in dict.fromkeys((first, *backends) if first else backends):
                known = lacks(backend, phase, shape, dtype, device)
                reason = known or (why_it_fails(backend, like, shape, dtype, device) if check else None)
                if reason is None:
                    steps.append((keys, backend))
                    break
                passed[backend, phase] = PassedOver(backend, phase, reason, checked=known is None)
            else:
                raise InvalidSetting(_nothing_serves(phase, dtype, device, passed))
        serving[phase] = tuple(next(same) for _, same in groupby(steps, key=lambda step: step[1]))
    return Serving(serving), list(passed.values())


def note_of_roles(shape: HeadShape, device: torch.device) -> list[str]:
    """Where a GPU has our kernel whose warps take roles for these heads, and this Triton does not: that is said."""
    has_one = capability_of(device) == HOPPER.capability and choose_roles_launch(HOPPER, shape.head_dim) is not None
    reason = why_no_warp_roles() if has_one else None
    return [f"triton is our older kernel here, and slower at causal prompts: of the other, {reason}."] if reason else []


def _nothing_serves(
    phase: Phase, dtype: torch.dtype, device: torch.device, passed: dict[tuple[str, Phase], PassedOver]
) -> str:
    reasons = "; ".join(f"{one.backend}: {one.reason}" for one in passed.values() if one.phase is phase)
    return f"no attention backend serves {phase} in {dtype} on {device}: {reasons}. Leave the model as it is here."


def notes_of(passed: Sequence[PassedOver]) -> list[str]:
    """One line for each backend and reason.

    >>> notes_of([PassedOver("flash", phase, "it takes no mask", False) for phase in (Phase.MASKED, Phase.BIASED)])
    ['flash is passed over at masked, biased: it takes no mask.']
    """
    phases: dict[tuple[str, str], list[str]] = {}
    for one in passed:
        phases.setdefault((one.backend, one.reason), []).append(one.phase)
    return [f"{backend} is passed over at {', '.join(at)}: {reason}." for (backend, reason), at in phases.items()]
