"""The interface that every optimization fulfils: ask for sites, decide, act through the journal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from inference_pio.contract.config import OptimizationType
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting
from inference_pio.undo.journal import Journal


class Stage(IntEnum):
    """When a step is taken: shapes first, then how weights are stored, what computes on them, where they lie, and
    last what is held beside them: how much that may be is told by what they leave.
    """

    STRUCTURE = 0
    STORAGE = 1
    COMPUTATION = 2
    PLACEMENT = 3
    WORKING = 4


class NoParameters(Settings):
    """For optimizations that have nothing to set."""


@dataclass
class Step:
    """What an optimization is handed while it acts on one model."""

    journal: Journal
    sites: tuple[Site, ...]
    decision: dict[str, Any]
    forecast: bool = False
    backend: str | None = None
    notes: list[str] = field(default_factory=list)
    arrive: Callable[[Sequence[Site]], Iterator[Site]] = iter
    """How the weights of sites come into memory, one after another, where a model is still being loaded."""


WeightsRead = Literal["none", "site by site", "all"]


class OptimizationInterface(ABC):
    """One optimization with its parameters. Subclasses say what they are in class attributes and write `apply`.

    A subclass edits only through `self.journal`; undo then needs no code. `sites` and `decide` only look.
    On a plan the same methods run on a skeleton of the model, whose tensors have shapes but no values.
    """

    name: ClassVar[str]
    optimization_type: ClassVar[OptimizationType]
    stage: ClassVar[Stage] = Stage.COMPUTATION
    summary: ClassVar[str] = ""
    exactness: ClassVar[str] = "approximate"
    changes_state_dict: bool = False
    dependencies: ClassVar[tuple[str, ...]] = ()
    Parameters: ClassVar[type[Settings]] = NoParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {}
    """Parameters with which it acts on models of a few hundred tokens, too, where its defaults are for large ones; the
    contract tests sweep every optimization with its own."""
    weights_read: WeightsRead = "all"
    """Which weights' values it needs to act. A model that is being loaded has all in memory before a step that needs
    them; one that goes site by site takes `self.arriving(sites)`, and has each site's weights there, no more."""
    device: torch.device = torch.device("cpu")
    """Where the live model is; a plan's skeleton itself is on the meta device."""

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        self.parameters: Any = self.Parameters.read(parameters, self.name)
        self._step: Step | None = None
        self._remover: Callable[[nn.Module], nn.Module] | None = None

    @property
    def runs_the_model(self) -> bool:
        """Whether it learns from what the model computes. Such a step is made before those of later stages, whatever
        stood first: they would take part in what it learns.
        """
        return type(self).decide_from_data is not OptimizationInterface.decide_from_data

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this optimization cannot work on this machine at all, or None."""
        return None

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Where it would act on this model, and where it would not, with reasons. Looks only."""
        return (Site("", role="model"),)

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        """What it chooses for these sites, as JSON; enough to rebuild the structure. Looks only."""
        return {}

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        """`decision`, and with it what only the live model can tell: it may run the model, but edits nothing.

        What `decide` said stays, since a plan has shown it. Raise NoEffect where the data leave nothing to do.
        """
        return decision

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        """Checks that need the weights' values, made just before the first write; raise to refuse."""
        return

    def checked_weights(self, sites: Sequence[Site]) -> Sequence[str]:
        """The modules whose weights' values `preflight` looks at, where the step reads none beside them."""
        return ()

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Act on `self.step.sites` through `self.journal`; return the model."""

    def report(self, model: nn.Module) -> dict[str, Any]:
        """What its parts in this model have counted since they were put there, as JSON; status and reports show it."""
        return {}

    def remove(self, model: nn.Module) -> nn.Module:
        """Take this optimization back exactly. The journal knows how; few need to override this."""
        if self._remover is None:
            raise InvalidSetting(f"{self.name} is not applied through a manager, so there is nothing to take back.")
        return self._remover(model)

    # ------------------------------------------------------------------ while acting

    @property
    def step(self) -> Step:
        if self._step is None:
            raise InvalidSetting(
                f"{self.name} acts through a manager, which keeps the journal for its undo: "
                f"get_optimization_manager().apply_optimizations(model, [{self.name!r}])."
            )
        return self._step

    @property
    def journal(self) -> Journal:
        """The one object through which the model is edited."""
        return self.step.journal

    def arriving(self, sites: Sequence[Site]) -> Iterator[Site]:
        """Sites one by one, each with its weights in memory and its preflight made."""
        return self.step.arrive(sites)

    def say(self, *, backend: str | None = None, note: str | None = None) -> None:
        """Put the backend that serves, or a remark, into the receipt."""
        self.step.backend = backend or self.step.backend
        if note:
            self.step.notes.append(note)
