"""The rehearsal: every step played on the skeleton, so that later steps see the structure they will meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from inference_pio.contract.optimization import OptimizationInterface, Step
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.contract.site import Site, skips_by_reason
from inference_pio.errors import ConflictError, NoEffect
from inference_pio.plan.plan import Left, PlannedStep
from inference_pio.plan.skeleton import tensor_bytes, twin_of
from inference_pio.plan.target import Wanted
from inference_pio.undo.frame import Frame
from inference_pio.undo.journal import Journal
from inference_pio.undo.vault import Vault

Losses = dict[tuple[str, str], str]  # (optimization, path) -> why another one has the claim


def rehearse(
    skeleton: nn.Module,
    names: Sequence[str],
    target: Mapping[str, Wanted],
    registry: OptimizationRegistry,
    device: torch.device,
    weight_bytes: int | None = None,
) -> tuple[list[PlannedStep], list[Left]]:
    """Play the steps in order on a copy of the skeleton; where two claim one thing, give it to the later stage.

    `device` is where the live model is, `weight_bytes` what the skeleton shows, if that is known. Raises ConflictError
    for two of one stage, NoEffect for an order that applies nowhere.
    """
    lost: Losses = {}
    nbytes = tensor_bytes(skeleton) if weight_bytes is None else weight_bytes
    while True:
        steps, left, found = _play(twin_of(skeleton), names, target, registry, device, lost, nbytes)
        if not found:
            return steps, left
        lost.update(found)


def _play(
    stage: nn.Module,
    names: Sequence[str],
    target: Mapping[str, Wanted],
    registry: OptimizationRegistry,
    device: torch.device,
    lost: Losses,
    nbytes: int,
) -> tuple[list[PlannedStep], list[Left], Losses]:
    journal = Journal(stage, Vault("device"))
    steps: list[PlannedStep] = []
    left: list[Left] = []
    owners: dict[tuple[str, str], str] = {}
    found: Losses = {}
    for name in names:
        member = target[name]
        reason = member.off or registry.get(name).unavailable()
        optimization = registry.create(name, member.parameters, device)
        sites = () if reason else sites_of(optimization, stage, lost)
        if not reason and not any(site.acts for site in sites):
            reason = _why_nowhere(sites)
        if reason is None:
            found |= _claim(optimization, sites, owners, registry)
            step = _rehearse_step(optimization, member, sites, stage, journal, nbytes)
            nbytes = step.weight_bytes_after
            reason = None if step.frame.entries else "it would change nothing on this model"
        if reason is None:
            steps.append(step)
        elif member.order and not member.off:
            raise NoEffect(f"{name} does not apply to this {type(stage).__name__}: {reason}.")
        else:
            left.append(Left(name, reason, member.source))
    return steps, left, found


def sites_of(optimization: OptimizationInterface, model: nn.Module, lost: Losses) -> tuple[Site, ...]:
    """An optimization's sites, those that it lost to another one marked as skipped."""
    return tuple(
        replace(site, skip=lost[optimization.name, site.path])
        if site.acts and (optimization.name, site.path) in lost
        else site
        for site in optimization.sites(model)
    )


def _rehearse_step(
    optimization: OptimizationInterface, member: Wanted, sites: tuple[Site, ...], stage: nn.Module, journal: Journal,
    before: int,
) -> PlannedStep:  # fmt: skip
    acting = tuple(site for site in sites if site.acts)
    decision = optimization.decide(stage, acting)
    step = Step(journal, acting, decision, forecast=True)
    frame = act(optimization, step, stage)
    return PlannedStep(
        name=member.name, type=optimization.optimization_type.value, stage=optimization.stage.name.lower(),
        priority=member.priority, source=member.source, parameters=shown(optimization), sites=sites,
        decision=decision, backend=step.backend,
        weight_bytes_after=tensor_bytes(stage) if frame.moves_bytes else before, notes=tuple(step.notes), frame=frame,
    )  # fmt: skip


def act(optimization: OptimizationInterface, step: Step, model: nn.Module) -> Frame:
    """One step through the journal, its sites watched; taken back whole if it fails."""
    with step.journal.step(optimization.name) as frame:
        for site in step.sites:
            frame.watch(site.path, site.whole)
        if optimization.runs_the_model:
            frame.watch("", whole=True)
        optimization._step = step
        try:
            optimization.apply(model)
        finally:
            optimization._step = None
    return frame


def shown(optimization: OptimizationInterface) -> dict[str, Any]:
    """An optimization's parameters, defaults included, as plain data."""
    return dict(optimization.parameters.model_dump(mode="json"))


def _claim(
    optimization: OptimizationInterface, sites: Sequence[Site], owners: dict[tuple[str, str], str],
    registry: OptimizationRegistry,
) -> Losses:  # fmt: skip
    losses: Losses = {}
    for site in sites:
        for claim in sorted(site.claims) if site.acts else ():
            other = owners.setdefault((site.path, claim), optimization.name)
            if other == optimization.name:
                continue
            if registry.get(other).stage == optimization.stage:
                raise ConflictError(
                    f"{other} and {optimization.name} both claim {claim!r} at {site.path or 'the model'} "
                    f"in one stage ({optimization.stage.name.lower()}): keep one of them."
                )
            losses[other, site.path] = f"{optimization.name}, of a later stage, takes {claim!r} here"
            owners[site.path, claim] = optimization.name
    return losses


def _why_nowhere(sites: Sequence[Site]) -> str:
    reasons = [f"{skips.reason} ({len(skips.paths)} places)" for skips in skips_by_reason(tuple(sites))]
    return "; ".join(reasons) or "there is no place in this model for it"
