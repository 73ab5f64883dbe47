"""Reach a target set: take back what must go, make what is new, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from torch import nn

from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import NoEffect, NothingApplied
from inference_pio.manager.kept_open import open_base
from inference_pio.manager.running import wait_until_idle
from inference_pio.manager.session import Applied, Session, gate_of, session_of
from inference_pio.manager.steps import take_step
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.plan.make import make_plan
from inference_pio.plan.moves import Moves
from inference_pio.plan.plan import Left, Plan, PlannedStep
from inference_pio.plan.skeleton import device_of
from inference_pio.plan.target import Supply, TargetSet, Wanted, with_dependencies
from inference_pio.sources.cache import cache_folder
from inference_pio.undo.configs import OwnConfigs
from inference_pio.undo.places import SESSION
from inference_pio.undo.transaction import OnDrift, Transaction
from inference_pio.undo.vault import KeepOriginals

Remover = Callable[..., nn.Module]
Aim = Callable[[], tuple[TargetSet, str | None]]


def reach(
    model: nn.Module, aim: Aim, registry: OptimizationRegistry, remover: Remover, *,
    supply: Supply = Wanted, keep_originals: KeepOriginals = "auto", timeout_s: float = 60.0,
    on_drift: OnDrift = "raise",
) -> Plan:  # fmt: skip
    """Plan, then edit as the only writer. Any exception, Ctrl-C included, leaves the model as before the call.

    `aim` tells the target set and its profile. It is asked when no other thread edits any more: what it adds to must
    not be what stood before that edit.
    """
    with gate_of(model).writing(timeout_s):
        target, profile = aim()
        session = session_of(model) or Session(model)
        fresh = SESSION not in model.__dict__
        session.take_stock(model)
        plan, moves = make_plan(
            model, target.values(), registry, profile=profile, standing=session.standing, skeleton=session.skeleton,
            supply=supply,
        )  # fmt: skip
        whole_target = with_dependencies(target.values(), registry, supply)[0]
        if moves.made or moves.removed or session.empty:
            if fresh:
                wait_until_idle(model, timeout_s)
            standing_before = list(session.applied)
            orders = {member.name for member in whole_target.values() if member.order}
            transaction, plan = _move(model, session, plan, moves, registry, remover, keep_originals, on_drift, orders)
            session.verdict = None  # the answers are others now
            _record(session, plan, whole_target)  # before the commit: a Ctrl-C in it must not leave an old target
            transaction.commit()
            if _bytes_moved(standing_before, session.applied):
                return_freed_memory(collect=False)
        else:
            _record(session, plan, whole_target)
        if fresh and not session.applied:
            model.__dict__.pop(SESSION, None)
    return plan


def _move(
    model: nn.Module, session: Session, plan: Plan, moves: Moves, registry: OptimizationRegistry, remover: Remover,
    keep: KeepOriginals, on_drift: OnDrift, orders: Collection[str],
) -> tuple[Transaction, Plan]:  # fmt: skip
    """Make the moves, or put everything back and raise; the caller commits. Returns the plan as it was carried out."""
    applied_before, owned_before = list(session.applied), session.owned
    had_session = SESSION in model.__dict__
    transaction = Transaction(session.journal)
    try:
        going = [step for step in session.applied if step.name in moves.taken_back]
        last = len(going) == len(session.applied) and not (moves.made or session.inherited or session.stays)
        frames = [step.frame for step in going] + ([session.journal.base] if last else [])
        owned = session.owned if last else None
        if by_themselves := [step.optimization for step in going if _removes_itself(step.optimization)]:
            if on_drift == "raise":  # before they write
                transaction.check(frames, owned)
            for optimization in by_themselves:
                optimization._remover = lambda model: model
                optimization.remove(model)
        transaction.undo(frames, on_drift, owned)
        session.applied = [step for step in session.applied if step not in going]
        if moves.made:
            plan = _make(model, session, plan, moves, registry, remover, keep, orders)
        elif last:
            session.owned = OwnConfigs()
            model.__dict__.pop(SESSION, None)
    except BaseException:
        transaction.rollback()
        session.applied, session.owned = applied_before, owned_before
        if had_session:
            model.__dict__[SESSION] = session
        else:
            model.__dict__.pop(SESSION, None)
        raise
    return transaction, plan


def _make(
    model: nn.Module, session: Session, plan: Plan, moves: Moves, registry: OptimizationRegistry, remover: Remover,
    keep: KeepOriginals, orders: Collection[str],
) -> Plan:  # fmt: skip
    """Make the new steps; a wish that the live model leaves nothing to do for is left out of the plan."""
    model.__dict__.setdefault(SESSION, session)
    session.open_vault(keep, model, cache_folder() / "undo")
    open_base(model, session)
    for planned in plan.steps:
        if planned.name not in moves.made:
            continue
        optimization = registry.create(planned.name, planned.parameters, device_of(model))
        try:
            session.applied.append(take_step(model, session, planned, optimization))
        except NoEffect as error:
            if planned.name in orders:
                raise
            plan = _without(plan, planned, str(error).rstrip("."))
            continue
        optimization._remover = lambda model, name=planned.name: remover(model, [name])
    if not session.applied and not session.inherited:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in plan.left)
        raise NothingApplied(f"nothing of what was asked for applies to this {type(model).__name__}: {reasons}.")
    return plan


def _without(plan: Plan, step: PlannedStep, reason: str) -> Plan:
    left = Left(step.name, reason, step.source)
    return replace(plan, steps=tuple(one for one in plan.steps if one is not step), left=(*plan.left, left))


def _bytes_moved(before: list[Applied], after: list[Applied]) -> bool:
    """Whether a step that came or went had changed the weights' bytes."""
    both = {id(step) for step in before} & {id(step) for step in after}
    receipts = [step.receipt for step in before + after if id(step) not in both]
    return any(receipt.weight_bytes_before != receipt.weight_bytes_after for receipt in receipts)


def _removes_itself(optimization: OptimizationInterface) -> bool:
    """Whether a class overrides `remove`: it does its part first, and the journal takes back what that leaves."""
    return type(optimization).remove is not OptimizationInterface.remove


def _record(session: Session, plan: Plan, target: TargetSet) -> None:
    if plan.profile != session.profile or _switches(target) != _switches(session.target):
        session.verdict = None  # it was said of what was asked for then
    session.target, session.left, session.profile = target, plan.left, plan.profile
    session.order = [step.name for step in plan.steps]


def _switches(target: TargetSet) -> dict[str, str | None]:
    return {name: member.off for name, member in target.items()}
