"""What the sweeps over every optimization and every tiny model share."""

from __future__ import annotations

import contextlib
import functools
import itertools
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from inference_pio.contract.config import OptimizationConfig
from inference_pio.contract.optimization import OptimizationInterface, OptimizationType, Stage
from inference_pio.errors import ConflictError, PlanError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.fingerprint import Fingerprint, fingerprint
from tests import tiny


def small_manager() -> ModularOptimizationManager:
    """A manager under which every optimization acts on tiny models."""
    manager = ModularOptimizationManager()
    for cls in manager.registry:
        if cls.on_small_models:
            config = OptimizationConfig(name=cls.name, parameters=dict(cls.on_small_models))
            manager.configure_optimization(cls.name, config)
    return manager


NAMES = ModularOptimizationManager().get_available_optimizations()
PAIRS = list(itertools.combinations(NAMES, 2))


APART = {"disk_offloading", "model_surgery", "snn_conversion", "structured_pruning", "tensor_decomposition"}
"""What streams refuses some ordinary calls: training, and weights loaded into it (tests/streaming/test_hooks.py). What
changes shapes, or runs the model to learn from it, comes first, and everything behind it is made anew where it comes or
goes. Spikes have no gradient, and no attention weights to show (tests/optimizations/structure)."""


def _together() -> list[str]:
    """Names that one model takes at once, of those that claim one thing the first, with all ordinary calls left."""
    model, manager = tiny.build("llama"), small_manager()
    taken: list[str] = []
    for name in (name for name in NAMES if name not in APART):
        with contextlib.suppress(ConflictError):
            manager.plan(model, [*taken, name])
            taken.append(name)
    return taken


TOGETHER = _together()
Test = TypeVar("Test", bound=Callable[..., None])
IN_EVERY_RUN = 2
"""Pairs, or models, that `make test` takes; the others are left to `make verify`, and each commit takes the next."""
LONG_ONES = 10
"""Claims that each take ten seconds and more to hold: a commit's `make test` holds one of them, `make verify` all."""


def rotating(cells: Sequence[Any], turn: int, count: int = IN_EVERY_RUN) -> list[Any]:
    """All cells as parameters of a test; those whose turn it is not are marked slow.

    >>> [bool(one.marks) for one in rotating("abcde", turn=2, count=2)]
    [False, True, True, True, False]
    """
    taken = {(turn * count + place) % max(len(cells), 1) for place in range(count)}
    return [
        pytest.param(
            cell, marks=[] if place in taken else pytest.mark.slow, id=cell if isinstance(cell, str) else "+".join(cell)
        )
        for place, cell in enumerate(cells)
    ]


@functools.cache
def turn_of_this_commit() -> int:
    """A number that each commit counts on, any other where its forerunners were not fetched; 0 without a repository."""
    shallow, _, name = _git("rev-parse", "--is-shallow-repository", "HEAD").partition("\n")
    if shallow == "true":
        return int(name[:8], 16)
    return int(_git("rev-list", "--count", "HEAD") or 0)


def _git(*words: str) -> str:
    told = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return told.stdout.strip() if told.returncode == 0 else ""


def in_its_turn(place: int, of: int) -> Callable[[Test], Test]:
    """A mark for a long test that is one of so many: each commit's `make test` takes one, `make verify` all of them."""
    return _as_it_is if turn_of_this_commit() % of == place else pytest.mark.slow


def marks_of(place: int, of: int) -> list[pytest.MarkDecorator]:
    """`in_its_turn` for one parameter of a test.

    >>> sum(bool(marks_of(place, of=3)) for place in range(3))
    2
    """
    return [] if turn_of_this_commit() % of == place else [pytest.mark.slow]


def _as_it_is(test: Test) -> Test:
    return test


class Marker(OptimizationInterface):
    """A test-only optimization, as an outsider would write it: it scales the last module's output by two."""

    name = "marker"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.COMPUTATION

    def apply(self, model: nn.Module) -> nn.Module:
        last = list(model.modules())[-1]
        self.journal.hook(last, "forward", lambda module, given, out: out * 2)
        self.journal.set(last, "marked", True)
        self.journal.register(model, vars(model), "marks", [1])
        return model


class Case:
    """One tiny model with what it was before anything was done to it."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.name = name
        self.model = tiny.build(name, dtype=dtype)
        self.logits = tiny.logits(self.model, name)
        self.before: Fingerprint = fingerprint(self.model)
        self.manager = small_manager()

    def apply(self, *names: str, **how: Any) -> bool:
        """Apply by name; False where the plan says that one of them does not apply to this model."""
        now = fingerprint(self.model)
        try:
            self.manager.apply_optimizations(self.model, list(names), **how)
        except PlanError:
            assert now.differences(fingerprint(self.model)) == []
            return False
        return True

    def check_untouched(self) -> None:
        """The model is what it was: same objects, same bits, same answers, nothing left behind."""
        assert self.before.differences(fingerprint(self.model)) == []
        assert torch.equal(tiny.logits(self.model, self.name), self.logits)
        assert "_inference_pio" not in vars(self.model)
