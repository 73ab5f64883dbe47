"""One step on the live model: sites asked again, checks made, edit done, receipt written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from inference_pio.contract.optimization import OptimizationInterface, Step
from inference_pio.contract.receipt import Receipt
from inference_pio.contract.site import Site
from inference_pio.errors import NoEffect
from inference_pio.manager.session import Applied, Session
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.plan.moves import Standing
from inference_pio.plan.plan import PlannedStep
from inference_pio.plan.rehearse import act, shown
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.streaming.arrival import Arrivals, arrivals_of
from inference_pio.undo.frame import Frame
from inference_pio.undo.journal import Journal
from inference_pio.undo.slots import tensors_of
from inference_pio.undo.tensors import Park

TRIM_BYTES = 16 * 2**20
"""After so many bytes of weights were read, what the C library holds of their memory is given back."""


def take_step(model: nn.Module, session: Session, plan: PlannedStep, optimization: OptimizationInterface) -> Applied:
    """Apply one planned step to the live model. Whatever it raises, its own writes are taken back first."""
    started = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():
        arrivals = arrivals_of(model)
        if arrivals is not None and optimization.weights_read == "all":
            arrivals.bring(tensors_of(model), summed=True)
        sites = _sites_now(optimization, model, plan)
        acting = tuple(site for site in sites if site.acts)
        if not acting:
            raise NoEffect(f"{plan.name} was planned for this model, but finds no place in it any more.")
        before = tensor_bytes(model)
        one_by_one = arrivals is not None and optimization.weights_read == "site by site"
        if arrivals is not None and not one_by_one:
            for path in optimization.checked_weights(acting):
                arrivals.bring(tensors_of(model.get_submodule(path)), summed=True)
        if not one_by_one:
            optimization.preflight(model, acting)
        decision = optimization.decide_from_data(model, acting, optimization.decide(model, acting))
        step = Step(session.journal, acting, decision)
        if arrivals is not None and one_by_one:
            step.arrive = partial(_arriving, arrivals, optimization, model, session.journal)
        frame = act(optimization, step, model)
    after = tensor_bytes(model) if frame.moves_bytes else before
    receipt = Receipt(
        name=plan.name, type=plan.type, stage=plan.stage, parameters=shown(optimization), sites=sites,
        decision=step.decision, backend=step.backend, seconds=time.perf_counter() - started,
        weight_bytes_before=before, weight_bytes_after=after, held_bytes=frame.held_bytes,
        parked_bytes=frame.parked_bytes, originals=originals_in(frame), notes=tuple(step.notes),
        reversible=not any(isinstance(entry, Park) and entry.parked.nbytes < 0 for entry in frame.entries),
        changes_state_dict=optimization.changes_state_dict,
    )  # fmt: skip
    return Applied(optimization, frame, receipt, Standing(plan.name, plan.signature, frame))


def _arriving(
    arrivals: Arrivals, optimization: OptimizationInterface, model: nn.Module, journal: Journal, sites: Sequence[Site]
) -> Iterator[Site]:
    """Sites of a model that is being loaded, each once its weights are there and its preflight is made.

    What is made of a layer that will stream is set aside as soon as it is whole.
    """
    given_back = 0
    ended = arrivals.aside.ended_by([site.path for site in sites]) if arrivals.aside is not None else {}
    for number, site in enumerate(sites):
        arrivals.bring(tensors_of(model.get_submodule(site.path)), summed=True)
        journal.arrived(tensors_of(model.get_submodule(site.path)))
        optimization.preflight(model, (site,))
        yield site
        for path in ended.get(number, ()):
            assert arrivals.aside is not None
            arrivals.aside.put(model, path)
            journal.arrived(tensors_of(model.get_submodule(path)))
        if arrivals.read_bytes - given_back >= TRIM_BYTES:
            given_back = arrivals.read_bytes
            return_freed_memory(collect=False)


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
