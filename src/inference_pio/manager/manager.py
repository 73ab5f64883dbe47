"""`ModularOptimizationManager`: one place that switches optimizations on and off on live models."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from torch import nn

from inference_pio.contract.config import OptimizationConfig
from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.receipt import Receipt
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import InvalidSetting, RequiredByOthers, VaultError
from inference_pio.manager.kept_open import kept_open
from inference_pio.manager.reach import Aim, reach
from inference_pio.manager.session import Session, gate_of, session_of
from inference_pio.manager.status import status_of
from inference_pio.optimizations import built_in
from inference_pio.plan.make import check_model, make_plan
from inference_pio.plan.plan import Plan
from inference_pio.plan.target import TargetSet, Wanted
from inference_pio.undo.transaction import OnDrift
from inference_pio.undo.vault import KeepOriginals

logger = logging.getLogger("inference_pio")


class ModularOptimizationManager:
    """Applies, removes and tracks optimizations; every edit of a model can be taken back exactly.

    >>> manager = get_optimization_manager()
    >>> "flash_attention" in manager.get_available_optimizations()
    True
    """

    def __init__(self, registry: OptimizationRegistry | None = None) -> None:
        self.registry = registry if registry is not None else built_in()
        self._configs: dict[str, OptimizationConfig] = {}
        self._models: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    # ------------------------------------------------------------------ what there is

    def register_optimization(self, optimization: type[OptimizationInterface]) -> None:
        """Make a class of your own known; it is then planned, undone and reported like the built-in ones."""
        self.registry.register(optimization)

    def get_available_optimizations(self) -> list[str]:
        """The names of all registered optimizations."""
        return self.registry.names()

    def configure_optimization(self, name: str, config: OptimizationConfig) -> None:
        """Set the defaults that later applies of an optimization use; no live model is edited."""
        self._check_config(name, config)
        self._configs[name] = config

    def update_optimization_config(self, name: str, /, **changes: Any) -> OptimizationConfig:
        """Change single fields of an optimization's defaults, and return the new ones."""
        known = self._configs.get(name) or OptimizationConfig(name=name)
        self.configure_optimization(name, OptimizationConfig(**{**known.model_dump(), **changes}))
        return self._configs[name]

    def _check_config(self, name: str, config: OptimizationConfig) -> None:
        cls = self.registry.get(name)
        if not isinstance(config, OptimizationConfig):
            raise InvalidSetting(f"the configuration of {name} must be an OptimizationConfig, not {config!r}.")
        if config.name != name:
            raise InvalidSetting(f"this configuration is named {config.name!r}, but it was given for {name!r}.")
        if config.optimization_type not in (None, cls.optimization_type):
            raise InvalidSetting(
                f"{name} is of type {cls.optimization_type.name}, not {config.optimization_type.name}: "
                "correct optimization_type, or leave it out."
            )
        for needed in config.dependencies:
            self.registry.get(needed)
        self.registry.create(name, config.parameters)

    def wanted(
        self, name: str, parameters: Mapping[str, Any] | None = None, *, order: bool = True, source: str = "by name",
        priority: int | None = None, dependencies: Sequence[str] = (),
    ) -> Wanted:  # fmt: skip
        """A member of a target set: the configured defaults under what is given here."""
        self.registry.get(name)
        if parameters is not None and not isinstance(parameters, Mapping):
            raise InvalidSetting(f"the parameters of {name} must be a mapping of names to values, not {parameters!r}.")
        config = self._configs.get(name) or OptimizationConfig(name=name)
        merged = {**config.parameters, **(parameters or {})}
        self.registry.create(name, merged)
        off = None if config.enabled else "switched off by configure_optimization(enabled=False)"
        if off and order:
            raise InvalidSetting(f"{name} is asked for by name, but {off}: enable it in its configuration first.")
        return Wanted(
            name, merged, order, config.priority if priority is None else priority,
            (*config.dependencies, *dependencies), source, off,
        )  # fmt: skip

    # ------------------------------------------------------------------ plan, apply, remove

    def plan(self, model: nn.Module, wanted: Iterable[str | Wanted], *, profile: str | None = None) -> Plan:
        """What applying these would do; nothing is touched."""
        return self._plan(model, [self._as_wanted(member) for member in wanted], profile)

    def _plan(self, model: nn.Module, wanted: Sequence[Wanted], profile: str | None) -> Plan:
        check_model(model)
        session = session_of(model)
        standing, skeleton = (session.standing, session.skeleton) if session else ([], None)
        return make_plan(
            model, wanted, self.registry, profile=profile, standing=standing, skeleton=skeleton, supply=self._needed
        )[0]

    def apply_optimizations(
        self, model: nn.Module, names: Sequence[str], *, parameters: Mapping[str, Mapping[str, Any]] | None = None,
        keep_originals: KeepOriginals = "auto", timeout_s: float = 60.0,
    ) -> nn.Module:  # fmt: skip
        """Add optimizations, by name, to those the model has; each applies or the call raises and changes nothing."""
        names = _names(names)
        given = {} if parameters is None else parameters
        if not isinstance(given, Mapping):
            raise InvalidSetting(f"parameters must be a mapping of names to parameters, not {given!r}.")
        for name in given:
            if name not in names:
                raise InvalidSetting(f"parameters are given for {name!r}, which is not among {', '.join(names)}.")
        added = {name: self.wanted(name, given.get(name)) for name in names}
        return self._reach(
            model, lambda: ({**self._target(model), **added}, self._profile(model)),
            keep_originals=keep_originals, timeout_s=timeout_s,
        )  # fmt: skip

    def set_target(
        self, model: nn.Module, wanted: Iterable[str | Wanted], *, profile: str | None = None,
        keep_originals: KeepOriginals = "auto", timeout_s: float = 60.0, on_drift: OnDrift = "raise",
    ) -> nn.Module:  # fmt: skip
        """Give the model exactly these: what is not among them is removed, what is unchanged is not touched."""
        if isinstance(wanted, str) or not isinstance(wanted, Iterable):
            raise InvalidSetting(f"a target set must be a list of optimization names, not {wanted!r}.")
        target = {member.name: member for member in map(self._as_wanted, wanted)}
        return self._reach(
            model, lambda: (target, profile), keep_originals=keep_originals, timeout_s=timeout_s, on_drift=on_drift
        )  # fmt: skip

    def remove_optimizations(
        self, model: nn.Module, names: Sequence[str] | None = None, *, cascade: bool = False,
        on_drift: OnDrift = "raise", timeout_s: float = 60.0,
    ) -> nn.Module:  # fmt: skip
        """Take optimizations back exactly (all of them without `names`), in any order.

        Raises RequiredByOthers where others need them, unless `cascade`; ModelDrift where the model was changed
        by somebody else, unless `on_drift="discard"`; VaultError for one whose originals are not here. Without `names`
        those stay, which the log tells.
        """
        asked = None if names is None else _names(names)
        return self._reach(
            model, lambda: self._remaining(model, asked, cascade), timeout_s=timeout_s, on_drift=on_drift
        )  # fmt: skip

    @contextmanager
    def several_edits(self, model: nn.Module, timeout_s: float = 60.0) -> Iterator[None]:
        """Calls of the model in other threads wait until all edits inside are done, whatever stands in between."""
        check_model(model)
        with gate_of(model).writing(timeout_s):
            try:
                with kept_open(model, timeout_s):
                    yield
            finally:
                session = session_of(model)
                if session is not None and session.empty:
                    self.set_target(model, [])

    def _remaining(self, model: nn.Module, asked: Sequence[str] | None, cascade: bool) -> tuple[TargetSet, str | None]:
        """The target set without some of its members, or without any."""
        target, session = self._target(model), session_of(model)
        inherited = [receipt.name for receipt in session.inherited] if session else []
        if asked is None and session and inherited:
            logger.warning("%s cannot be taken back: %s.", ", ".join(inherited), _why_not(session))
        for name in asked or ():
            if name in target:
                continue
            if session and name in inherited:
                raise VaultError(f"{name} cannot be taken back: {_why_not(session)}.")
            self.registry.get(name)
            logger.warning("%s is not applied to this model: nothing to take back.", name)
        left = _without(target, set(target if asked is None else asked), cascade)
        return left, self._profile(model) if left else None

    def _reach(self, model: nn.Module, aim: Aim, **how: Any) -> nn.Module:
        check_model(model)
        _check_how(**how)
        reach(model, aim, self.registry, self.remove_optimizations, supply=self._needed, **how)
        if session_of(model) is None:
            self._models.discard(model)
        else:
            self._models.add(model)
        return model

    def _needed(self, name: str) -> Wanted:
        """A member that another one depends on, with its configured defaults."""
        return self.wanted(name, order=False)

    def _as_wanted(self, member: str | Wanted) -> Wanted:
        return member if isinstance(member, Wanted) else self.wanted(member)

    def _target(self, model: nn.Module) -> TargetSet:
        session = session_of(model)
        return dict(session.target) if session else {}

    def _profile(self, model: nn.Module) -> str | None:
        session = session_of(model)
        return session.profile if session else None

    # ------------------------------------------------------------------ what stands

    def get_model_optimizations(self, model: nn.Module) -> list[str]:
        """The names of the optimizations applied to a model, in the order they stand."""
        return [receipt.name for receipt in self.get_receipts(model)]

    def get_receipts(self, model: nn.Module) -> tuple[Receipt, ...]:
        """What each applied step did."""
        check_model(model)
        session = session_of(model)
        return session.receipts if session else ()

    def get_optimization_status(self, model: nn.Module) -> dict[str, Any]:
        """What is applied, what was skipped and why, and what it costs, as plain data."""
        check_model(model)
        return status_of(model, self.registry)

    def get_all_optimization_statuses(self) -> list[dict[str, Any]]:
        """The status of every living model that this manager has optimized."""
        return [status_of(model, self.registry) for model in list(self._models)]


def _names(names: object) -> list[str]:
    """Names in a list. Raises InvalidSetting for anything else."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidSetting(f"names must be a list of optimization names, not {names!r}.")
    found = list(names)
    if not all(isinstance(name, str) for name in found):
        raise InvalidSetting(f"names must be a list of optimization names, not {found!r}.")
    return found


def _check_how(*, timeout_s: object, on_drift: object = "raise", keep_originals: object = "auto") -> None:
    """Raise InvalidSetting before anything waits: a mistyped word must not be taken for leave to discard."""
    for name, given, known in (("on_drift", on_drift, OnDrift), ("keep_originals", keep_originals, KeepOriginals)):
        if given not in get_args(known):
            raise InvalidSetting(f"{name}={given!r} is not one of {', '.join(get_args(known))}.")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s >= 0:
        raise InvalidSetting(f"timeout_s must be a number of seconds, 0 or more, not {timeout_s!r}.")


def _why_not(session: Session) -> str:
    return str(session.irreversible).removeprefix("no: ")


def _without(target: TargetSet, gone: set[str], cascade: bool) -> TargetSet:
    while needing := {
        name: sorted(set(member.dependencies) & gone)
        for name, member in target.items()
        if name not in gone and set(member.dependencies) & gone
    }:
        if not cascade:
            told = "; ".join(f"{name} needs {', '.join(needs)}" for name, needs in needing.items())
            raise RequiredByOthers(f"{told}. Remove them together, or pass cascade=True.")
        gone = gone | set(needing)
    return {name: member for name, member in target.items() if name not in gone}


@functools.cache
def get_optimization_manager() -> ModularOptimizationManager:
    """The manager that the documented functions share."""
    return ModularOptimizationManager()
