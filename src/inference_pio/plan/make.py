"""Make a plan: validate, order, rehearse, and compare with what stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from inference_pio.anatomy.refusals import why_refused
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import InvalidModel, NothingApplied
from inference_pio.plan.moves import Moves, Standing, moves_between
from inference_pio.plan.order import in_order
from inference_pio.plan.plan import Plan
from inference_pio.plan.rehearse import rehearse
from inference_pio.plan.skeleton import device_of, skeleton_of, tensor_bytes
from inference_pio.plan.target import Supply, Wanted, with_dependencies


def make_plan(
    model: nn.Module, wanted: Iterable[Wanted], registry: OptimizationRegistry, *, profile: str | None = None,
    standing: Sequence[Standing] = (), skeleton: nn.Module | None = None, supply: Supply = Wanted,
) -> tuple[Plan, Moves]:  # fmt: skip
    """The plan for a target set, and the moves from what stands. The model, which was checked, is only looked at.

    Raises the errors of `PlanError`, `UnknownName` and `InvalidSetting`.
    """
    target, notes = with_dependencies(wanted, registry, supply)
    names, order_notes = in_order(target, {name: registry.get(name).stage for name in target})
    bones = skeleton if skeleton is not None else skeleton_of(model)
    weight_bytes = tensor_bytes(bones)
    steps, left = rehearse(bones, names, target, registry, device_of(model), weight_bytes)
    if profile is not None and not steps and target:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in left)
        raise NothingApplied(f"nothing of profile {profile!r} applies to this {type(model).__name__}: {reasons}.")
    moves = moves_between(standing, steps)
    steps = [replace(step, action=_action(step.name, moves), frame=step.frame) for step in steps]
    plan = Plan(
        model=name_of(model), profile=profile, steps=tuple(steps), left=tuple(left), removed=moves.removed,
        notes=(*notes, *order_notes), weight_bytes_before=weight_bytes,
    )  # fmt: skip
    return plan, moves


def check_model(model: object) -> None:
    """Raise InvalidModel for what is not a model, or is of a kind that is refused whole."""
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"a model must be a torch nn.Module; this is a {type(model).__name__}.")
    if (reason := why_refused(model)) is not None:
        raise InvalidModel(f"this {type(model).__name__} cannot be optimized: {reason}")


def name_of(model: nn.Module) -> str:
    """What to call a model: the name it was loaded by, else its class."""
    return str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)


def _action(name: str, moves: Moves) -> str:
    if name in moves.replayed:
        return "replay"
    return "apply" if name in moves.made else "keep"
