"""One step on the live model: sites asked again, checks made, edit done, receipt written."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import nn

from inference_pio.contract.optimization import OptimizationInterface, Step
from inference_pio.contract.receipt import Receipt
from inference_pio.contract.site import Site
from inference_pio.errors import NoEffect
from inference_pio.manager.session import Applied, Session
from inference_pio.plan.moves import Standing
from inference_pio.plan.plan import PlannedStep
from inference_pio.plan.rehearse import act, shown
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.undo.frame import Frame
from inference_pio.undo.tensors import Park


def take_step(model: nn.Module, session: Session, plan: PlannedStep, optimization: OptimizationInterface) -> Applied:
    """Apply one planned step to the live model. Whatever it raises, its own writes are taken back first."""
    started = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():
        sites = _sites_now(optimization, model, plan)
        acting = tuple(site for site in sites if site.acts)
        if not acting:
            raise NoEffect(f"{plan.name} was planned for this model, but finds no place in it any more.")
        before = tensor_bytes(model)
        optimization.preflight(model, acting)
        decision = optimization.decide_from_data(model, acting, optimization.decide(model, acting))
        step = Step(session.journal, acting, decision)
        frame = act(optimization, step, model)
    receipt = Receipt(
        name=plan.name, type=plan.type, stage=plan.stage, parameters=shown(optimization), sites=sites,
        decision=step.decision, backend=step.backend, seconds=time.perf_counter() - started,
        weight_bytes_before=before, weight_bytes_after=tensor_bytes(model), held_bytes=frame.held_bytes,
        parked_bytes=frame.parked_bytes, originals=originals_in(frame), notes=tuple(step.notes),
        reversible=not any(isinstance(entry, Park) and entry.parked.nbytes < 0 for entry in frame.entries),
        changes_state_dict=optimization.changes_state_dict,
    )  # fmt: skip
    return Applied(optimization, frame, receipt, Standing(plan.name, plan.signature, frame))


def _sites_now(optimization: OptimizationInterface, model: nn.Module, plan: PlannedStep) -> tuple[Site, ...]:
    """The sites as the live model shows them; one that the plan skips stays skipped, for the plan's reason."""
    passed_over = {site.path: site.skip for site in plan.sites if not site.acts}
    return tuple(
        replace(site, skip=passed_over[site.path]) if site.acts and site.path in passed_over else site
        for site in optimization.sites(model)
    )


def originals_in(frame: Frame) -> str:
    """Where a step's originals wait, in words."""
    places = sorted({entry.parked.where for entry in frame.entries if isinstance(entry, Park)})
    if frame.kept_in_place_bytes:
        places.append("memory, in place")
    return ", ".join(places) or "nothing had to be parked"
