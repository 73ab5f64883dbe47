"""`load_pretrained`: a checkpoint comes into memory in the form that it is to have, and never whole in another one."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import ModelFamily, family_of_model, get_config_manager
from inference_pio.contract.byte_size import bytes_in, in_words
from inference_pio.errors import InvalidSetting, PlanError, SourceError
from inference_pio.integration.constraints import hold_constraints, total_bytes_of
from inference_pio.integration.saved import is_saved
from inference_pio.integration.targets import Changes, changed, check_profile, profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.measure.hardware import Hardware, hardware_of
from inference_pio.plan.plan import Plan
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.plan.target import Wanted
from inference_pio.sources.cache import cache_folder
from inference_pio.sources.open import Found, check_dtype, device_named, find_source
from inference_pio.sources.progress import byte_bar
from inference_pio.sources.unread import read_skeleton
from inference_pio.streaming.arrival import Arrivals, arriving
from inference_pio.streaming.aside import Aside
from inference_pio.streaming.awaiting import await_weights
from inference_pio.streaming.memory_limit import memory_limit_bytes

logger = logging.getLogger("inference_pio")
WITHIN = "disk_offloading"
"""What keeps a model within a budget."""


def load_pretrained(
    id_or_dir: str | os.PathLike[str], profile: str | None = None, *, optimizations: Sequence[str] = (),
    parameters: Mapping[str, Mapping[str, Any]] | None = None, gpu_budget: int | str | None = None,
    host_budget: int | str | None = None, dtype: torch.dtype | Literal["auto"] = "auto",
    device: str | torch.device | None = None, family: ModelFamily | str | None = None, hardware: str | None = None,
    progress: bool = True,
) -> Any:  # fmt: skip
    """A model of the library's class from a folder, a hub id, a `.gguf` file or "demo", optimized while it loads.

    It is, bit for bit, what `from_pretrained` and then applying the same gives, and can be taken back as that can; but
    its weights come in one by one, and each is stored or put away as it is to be before the next one comes. `profile`
    is one by name, as it is on a class of `hardware` (by default the one at hand); `optimizations` and `parameters` are
    orders on top of it. With a budget, layers that it has no room for stay on the host or on disk (`disk_offloading`).
    A step that needs the whole model has it in memory first, which the log tells; with a budget that this would break,
    it is refused before anything is read.

    Raises the errors of `open_model`, SourceError naming tensors that are missing or of another shape, PlanError.
    """
    if isinstance(optimizations, str):
        raise InvalidSetting(f"optimizations must be a list of optimization names, not {optimizations!r}.")
    changes = Changes(tuple(optimizations), parameters=parameters or {})
    return load_within(
        id_or_dir, profile, changes, Budgets(gpu_budget, host_budget), dtype=dtype, device=device, family=family,
        hardware=hardware, progress=progress,
    ).model  # fmt: skip


@dataclass(frozen=True)
class Budgets:
    """Memory that weights may take; see `disk_offloading`."""

    gpu: int | str | None = None
    host: int | str | None = None

    @property
    def given(self) -> dict[str, int | str]:
        named = {"gpu_budget": self.gpu, "host_budget": self.host}
        return {name: size for name, size in named.items() if size is not None}


@dataclass(frozen=True)
class Loaded:
    """A model that was optimized while it loaded, where it came from, and the plan that was followed, if any."""

    model: Any
    source: Found
    notes: tuple[str, ...]
    plan: Plan | None


def load_within(
    spec: str | os.PathLike[str], profile: str | None, changes: Changes, budgets: Budgets, *,
    dtype: torch.dtype | Literal["auto"] = "auto", device: str | torch.device | None = None,
    family: ModelFamily | str | None = None, hardware: str | None = None, progress: bool = True,
) -> Loaded:  # fmt: skip
    """What `load_pretrained` does, with all that it found out."""
    check_dtype(dtype)
    target_device = _device(device, budgets)
    here = hardware_of(target_device, hardware)
    _check_names(profile, family, changes, budgets, here.name)
    if is_saved(os.fspath(spec)):
        raise SourceError(f"{os.fspath(spec)} holds a model that is optimized already: inference_pio.load opens it.")
    found = find_source(spec, progress=progress)
    unread, told = read_skeleton(found.folder, dtype=dtype), _Told()
    model, arrivals = unread.model, Arrivals(target_device, told)
    with arriving(model, arrivals):
        total = await_weights(model, unread.tensors, arrivals)
        wanted = _target(model, profile, family, changes, budgets, here.name)
        plan = get_optimization_manager().plan(model, wanted, profile=profile) if wanted else None
        plan = plan and replace(plan, hardware=str(here))
        if plan is not None:
            _check(plan, wanted, target_device)
            arrivals.aside = _aside(plan)
        _hold_memory(tensor_bytes(model) if plan is None else plan.weight_bytes_after, target_device)
        with byte_bar(f"loading {found.name}", total, progress) as told.shown:
            if plan is not None:
                get_optimization_manager().set_target(model, wanted, profile=profile)
            arrivals.finish(model)
    return_freed_memory(collect=False)  # the reader's slabs among it
    for note in (notes := (*found.notes, *unread.notes)):
        logger.info("%s: %s", found.name, note)
    for note in (unguarded := _not_guarded(profile, here)):
        logger.warning("%s: %s", found.name, note)
    notes += tuple(unguarded)
    return Loaded(model, found, notes, plan)


class _Told:
    """What the loading tells of its bytes, to a bar that is made when their sum is known."""

    shown: Callable[[int], object] = staticmethod(lambda nbytes: None)

    def __call__(self, nbytes: int) -> None:
        self.shown(nbytes)


def _device(asked: str | torch.device | None, budgets: Budgets) -> torch.device:
    if asked is None:
        asked = "cpu" if budgets.gpu is None else "cuda"
    device = device_named(asked)
    if device.type not in ("cpu", "cuda"):
        raise InvalidSetting(f"a model is loaded on a CPU or an NVIDIA GPU, not on {device}: open_model may.")
    if budgets.gpu is not None and device.type == "cpu":
        raise InvalidSetting("gpu_budget is for models on a GPU: name one as device, or give host_budget instead.")
    return torch.empty(0, device=device).device  # with its number


def _check_names(
    profile: str | None, family: ModelFamily | str | None, changes: Changes, budgets: Budgets, hardware: str
) -> None:
    """Raise what asks for something that is not known, before anything is fetched."""
    whose = ModelFamily.OTHER if family is None else ModelFamily.of(family)
    if profile is None:
        changed({}, changes)
    else:
        check_profile(profile, whose, changes, hardware)
    if budgets.given:
        get_optimization_manager().wanted(WITHIN, budgets.given)


def _target(
    model: nn.Module, profile: str | None, family: ModelFamily | str | None, changes: Changes, budgets: Budgets,
    hardware: str,
) -> list[Wanted]:  # fmt: skip
    """A profile's members and the orders on top; what keeps within a budget is a wish: all may have room."""
    if profile is None:
        wanted = changed({}, changes)
    else:
        whose = family_of_model(model) if family is None else ModelFamily.of(family)
        members = profile_target(profile, whose, changes, model_type_of(model), hardware)
        hold_constraints(get_config_manager().get_profile(profile).for_hardware(hardware), model, members)
        wanted = {member.name: member for member in members}
    if budgets.given:
        before = wanted.get(WITHIN)
        parameters = {**(before.parameters if before else {}), **budgets.given}
        wanted[WITHIN] = get_optimization_manager().wanted(
            WITHIN, parameters, order=bool(before and before.order), source="the budget to load within"
        )
    return list(wanted.values())


def _not_guarded(profile: str | None, here: Hardware) -> list[str]:
    """What is told of bounds on the answers, which need the plain model to compare with."""
    if profile is None or not get_config_manager().get_profile(profile).for_hardware(here.name).bounds.any:
        return []
    return [
        f"the quality guard of profile {profile!r} was not asked: the plain model was never whole in memory. Apply the "
        "profile to a model that is loaded to have it measured."
    ]


def _aside(plan: Plan) -> Aside | None:
    """What is to stream need not be in memory until then."""
    for step in plan.steps:
        if step.name == WITHIN:
            in_host = set(step.decision.get("host", ()))
            return Aside({site.path: site.path in in_host for site in step.acting}, cache_folder() / "undo")
    return None


def _hold_memory(weight_bytes: int, device: torch.device) -> None:
    """Refuse weights that the device has no memory for at all."""
    limit = memory_limit_bytes() if device.type == "cpu" else total_bytes_of(device)
    if weight_bytes > limit:
        raise PlanError(
            f"the weights would take {in_words(weight_bytes)}, and {device} has {in_words(limit)}: give a budget to "
            "load within, or a profile that saves more. Nothing was read."
        )


def _check(plan: Plan, wanted: Sequence[Wanted], device: torch.device) -> None:
    """Refuse, before anything is read, what would not keep within the budget; tell what needs the whole model."""
    registry = get_optimization_manager().registry
    reads = {step.name: registry.create(step.name, step.parameters).weights_read for step in plan.steps}
    whole = [name for name, weights in reads.items() if weights == "all"]
    if whole and any(step.name == WITHIN for step in plan.steps):
        raise PlanError(
            f"{', '.join(whole)} would have the whole model in memory, which the budget has no room for: leave it "
            "out, or load without a budget. Nothing was read."
        )
    for step, later in itertools.pairwise(plan.steps):
        if step.name in whole and later.weight_bytes_after < step.weight_bytes_after:
            logger.warning("%s: all weights are in memory for %s, before %s.", plan.model, step.name, later.name)
    for left in plan.left:
        given = next((one.parameters for one in wanted if one.name == left.name == WITHIN), {})
        size = given.get("host_budget" if device.type == "cpu" else "gpu_budget")
        if size is not None and bytes_in(size, plan.weight_bytes_after) < plan.weight_bytes_after:
            raise PlanError(f"the model cannot be loaded within the budget: {left.reason}. Nothing was read.")
