"""A plan is frozen, printable, and says what is skipped and why."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests import tiny
from tests.sweep import TOGETHER, small_manager


def test_a_plan_prints_steps_skips_and_the_predicted_weights() -> None:
    plan = small_manager().plan(tiny.build("llama"), TOGETHER, profile=None)
    text = str(plan)
    for name in TOGETHER:
        assert f"apply {name}" in text
    assert "the head is kept" in text
    assert "(predicted)" in text
    assert json.loads(json.dumps(plan.to_json()))["steps"][0]["action"] == "apply"


def test_a_plan_cannot_be_changed() -> None:
    plan = small_manager().plan(tiny.build("llama"), TOGETHER)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.steps = ()  # type: ignore[misc]


def test_a_plan_on_an_optimized_model_tells_what_is_kept_and_what_is_taken_back() -> None:
    model, manager = tiny.build("llama"), small_manager()
    manager.apply_optimizations(model, TOGETHER)
    first, *others = manager.get_model_optimizations(model)
    kept = manager.plan(model, [first])
    assert [step.action for step in kept.steps] == ["keep"]
    assert set(kept.removed) == set(others)
