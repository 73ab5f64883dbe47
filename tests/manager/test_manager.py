"""The manager: target sets, orders and wishes, dependencies, configuration, status."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any, ClassVar

import pytest
from torch import nn

from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import (
    ConflictError,
    DependencyCycle,
    InvalidModel,
    InvalidSetting,
    ModelDrift,
    NoEffect,
    NothingApplied,
    RequiredByOthers,
    UnknownName,
    VaultError,
)
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.fingerprint import fingerprint


class Level(Settings):
    level: int = 1


class Tag(OptimizationInterface):
    """Sets an attribute on the linear layer."""

    name = "tag"
    optimization_type = OptimizationType.COMPUTE
    Parameters: ClassVar[type[Settings]] = Level
    claims: ClassVar[frozenset[str]] = frozenset()

    def sites(self, model: nn.Module) -> list[Site]:
        linear = isinstance(model.get_submodule("0"), nn.Linear)
        return [Site("0", "linear", claims=self.claims, skip=None if linear else "not a Linear")]

    def apply(self, model: nn.Module) -> nn.Module:
        for site in self.step.sites:
            self.journal.set(model.get_submodule(site.path), self.name, self.parameters.level)
        return model


class Early(Tag):
    name = "early"
    stage = Stage.STRUCTURE

    def sites(self, model: nn.Module) -> list[Site]:
        return [Site("1", "activation")] if len(model) > 1 else []


class Needing(Tag):
    name = "needing"
    dependencies = ("tag",)


class Owner(Tag):
    name = "owner"
    claims = frozenset({"weights.storage"})


class Rival(Tag):
    name = "rival"
    claims = frozenset({"weights.storage"})


class LateOwner(Owner):
    name = "late_owner"
    stage = Stage.PLACEMENT


class CircleA(Tag):
    name = "circle_a"
    dependencies = ("circle_b",)


class CircleB(Tag):
    name = "circle_b"
    dependencies = ("circle_a",)


class Legacy(Tag):
    """Overrides `remove`, as older code does."""

    name = "legacy"
    removed: ClassVar[list[str]] = []

    def remove(self, model: nn.Module) -> nn.Module:
        self.removed.append("called")
        return super().remove(model)


CLASSES = (Tag, Early, Needing, Owner, Rival, LateOwner, CircleA, CircleB, Legacy)


@pytest.fixture
def manager() -> ModularOptimizationManager:
    registry = OptimizationRegistry()
    for cls in CLASSES:
        registry.register(cls)
    return ModularOptimizationManager(registry)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def test_apply_adds_to_the_target_set_and_remove_takes_out(
    manager: ModularOptimizationManager, model: nn.Module
) -> None:
    before = fingerprint(model)
    assert manager.apply_optimizations(model, ["tag"]) is model
    manager.apply_optimizations(model, ["early"])
    assert sorted(manager.get_model_optimizations(model)) == ["early", "tag"]
    manager.remove_optimizations(model, ["tag"])
    assert manager.get_model_optimizations(model) == ["early"]
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_a_target_set_removes_what_is_not_in_it_and_does_not_touch_what_is_unchanged(
    manager: ModularOptimizationManager, model: nn.Module
) -> None:
    manager.apply_optimizations(model, ["tag", "early"])
    receipt = {one.name: one for one in manager.get_receipts(model)}["tag"]
    manager.set_target(model, ["tag"], profile="mine")
    assert manager.get_receipts(model) == (receipt,)
    assert manager.get_optimization_status(model)["profile"] == "mine"


def test_changed_parameters_replay_the_step(manager: ModularOptimizationManager, model: nn.Module) -> None:
    manager.apply_optimizations(model, ["tag"])
    manager.apply_optimizations(model, ["tag"], parameters={"tag": {"level": 5}})
    assert model[0].tag == 5
    manager.remove_optimizations(model)
    assert not hasattr(model[0], "tag")


def test_an_order_that_applies_nowhere_raises_and_a_wish_is_skipped_with_its_reason(
    manager: ModularOptimizationManager,
) -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(NoEffect, match="not a Linear"):
        manager.apply_optimizations(model, ["tag"])
    with pytest.raises(NothingApplied, match="not a Linear"):
        manager.set_target(model, [manager.wanted("tag", order=False)], profile="mine")
    assert vars(model).keys() == vars(nn.Sequential(nn.ReLU())).keys()


def test_a_missing_dependency_is_added_and_shown(manager: ModularOptimizationManager, model: nn.Module) -> None:
    assert any("tag was added: needing depends on it" in note for note in manager.plan(model, ["needing"]).notes)
    manager.apply_optimizations(model, ["needing"])
    assert manager.get_model_optimizations(model) == ["tag", "needing"]
    with pytest.raises(RequiredByOthers, match="needing needs tag"):
        manager.remove_optimizations(model, ["tag"])
    assert manager.get_model_optimizations(model) == ["tag", "needing"]
    manager.remove_optimizations(model, ["tag"], cascade=True)
    assert manager.get_model_optimizations(model) == []


def test_a_dependency_that_is_added_has_its_configured_defaults(
    manager: ModularOptimizationManager, model: nn.Module
) -> None:
    manager.configure_optimization("tag", OptimizationConfig(name="tag", parameters={"level": 5}, priority=3))
    assert manager.plan(model, ["needing"]).steps[0].parameters == {"level": 5}
    manager.apply_optimizations(model, ["needing"])
    assert model[0].tag == 5


def test_a_circle_of_dependencies_is_named(manager: ModularOptimizationManager, model: nn.Module) -> None:
    with pytest.raises(DependencyCycle, match="circle_a -> circle_b -> circle_a"):
        manager.apply_optimizations(model, ["circle_a"])


def test_two_of_one_stage_with_one_claim_are_refused(manager: ModularOptimizationManager, model: nn.Module) -> None:
    with pytest.raises(ConflictError, match=r"owner and rival both claim 'weights\.storage' at 0"):
        manager.apply_optimizations(model, ["owner", "rival"])
    assert manager.get_model_optimizations(model) == []


def test_of_two_stages_the_later_has_the_claim_and_the_skip_says_so(
    manager: ModularOptimizationManager, model: nn.Module
) -> None:
    wanted = [manager.wanted(name, order=False) for name in ("owner", "late_owner")]
    plan = manager.plan(model, wanted, profile="mine")
    assert [step.name for step in plan.steps] == ["late_owner"]
    assert "late_owner, of a later stage, takes 'weights.storage'" in plan.left[0].reason


def test_a_class_that_overrides_remove_has_it_called(manager: ModularOptimizationManager, model: nn.Module) -> None:
    before = fingerprint(model)
    manager.apply_optimizations(model, ["legacy"])
    Legacy.removed.clear()
    manager.remove_optimizations(model, ["legacy"])
    assert Legacy.removed == ["called"]
    assert before.differences(fingerprint(model)) == []


def test_a_remove_of_its_own_is_not_called_where_the_model_was_changed_by_somebody_else(
    manager: ModularOptimizationManager, model: nn.Module
) -> None:
    manager.apply_optimizations(model, ["legacy"])
    model[0].legacy = "of the user"
    Legacy.removed.clear()
    with pytest.raises(ModelDrift, match="legacy"):
        manager.remove_optimizations(model, ["legacy"])
    assert Legacy.removed == []
    manager.remove_optimizations(model, ["legacy"], on_drift="discard")
    assert Legacy.removed == ["called"]
    assert "legacy" not in vars(model[0])


def test_configure_sets_defaults_and_edits_no_live_model(manager: ModularOptimizationManager, model: nn.Module) -> None:
    manager.apply_optimizations(model, ["tag"])
    config = OptimizationConfig(
        name="tag", enabled=True, optimization_type=OptimizationType.COMPUTE, priority=10, parameters={"level": 7}
    )
    manager.configure_optimization("tag", config)
    assert model[0].tag == 1
    manager.apply_optimizations(model, ["tag"])
    assert model[0].tag == 7
    assert manager.update_optimization_config("tag", parameters={"level": 9}).priority == 10


def test_removing_what_is_off_is_told_and_changes_nothing(
    manager: ModularOptimizationManager, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "inference_pio"):
        manager.remove_optimizations(model, ["tag"])
    assert "tag is not applied to this model" in caplog.text


def test_status_tells_what_is_applied_skipped_and_held(manager: ModularOptimizationManager, model: nn.Module) -> None:
    manager.apply_optimizations(model, ["tag"])
    status = manager.get_optimization_status(model)
    json.dumps(status)
    assert status["applied"] == ["tag"]
    assert status["reversible"] == "yes"
    assert status["optimizations"]["tag"]["receipt"]["site_count"] == 1
    assert status["resident_bytes"] == status["weight_bytes"] + status["held_bytes"]
    assert [one["model"] for one in manager.get_all_optimization_statuses()] == ["Sequential"]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, x: m.apply_optimizations(x, ["tagg"]), UnknownName, "Did you mean 'tag'"),
        (lambda m, x: m.apply_optimizations(x, ["tag"], parameters={"tag": {"levl": 1}}), UnknownName, "'level'"),
        (
            lambda m, x: m.apply_optimizations(x, ["tag"], parameters={"tag": {"level": "high"}}),
            InvalidSetting,
            "level",
        ),
        (lambda m, x: m.apply_optimizations(x, ["tag"], parameters={"early": {}}), InvalidSetting, "not among"),
        (lambda m, x: m.apply_optimizations(x, "tag"), InvalidSetting, "a list"),
        (lambda m, x: m.apply_optimizations("model", ["tag"]), InvalidModel, "a str"),
        (lambda m, x: m.remove_optimizations(x, ["tagg"]), UnknownName, "tagg"),
        (lambda m, x: m.apply_optimizations(x, ["tag"], keep_originals="cloud"), InvalidSetting, "keep_originals"),
        (
            lambda m, x: m.configure_optimization("tag", OptimizationConfig(name="early")),
            InvalidSetting,
            "named 'early'",
        ),
        (
            lambda m, x: m.configure_optimization(
                "tag", OptimizationConfig(name="tag", optimization_type=OptimizationType.MEMORY)
            ),
            InvalidSetting,
            "COMPUTE",
        ),
        (lambda m, x: OptimizationConfig(name="tag", priorty=1), UnknownName, "'priority'"),
        (lambda m, x: OptimizationConfig(name="tag", priority="first"), InvalidSetting, "priority"),
        (lambda m, x: m.register_optimization(nn.Linear), InvalidSetting, "OptimizationInterface"),
        (lambda m, x: m.apply_optimizations(x, None), InvalidSetting, "a list"),
        (lambda m, x: m.apply_optimizations(x, ["tag"], parameters=["tag"]), InvalidSetting, "a mapping"),
        (lambda m, x: m.apply_optimizations(x, ["tag"], parameters={"tag": 3}), InvalidSetting, "a mapping"),
        (lambda m, x: m.apply_optimizations(x, ["tag"], timeout_s="long"), InvalidSetting, "timeout_s"),
        (lambda m, x: m.apply_optimizations(x, ["tag"], timeout_s=float("nan")), InvalidSetting, "timeout_s"),
        (lambda m, x: m.remove_optimizations(x, 5), InvalidSetting, "a list"),
        (lambda m, x: m.remove_optimizations(x, [[]]), InvalidSetting, "a list"),
        (lambda m, x: m.remove_optimizations(x, on_drift="discrad"), InvalidSetting, "raise, discard"),
        (lambda m, x: m.set_target(x, None), InvalidSetting, "a list"),
        (lambda m, x: m.set_target(x, "tag"), InvalidSetting, "a list"),
        (lambda m, x: m.configure_optimization(["tag"], OptimizationConfig(name="tag")), UnknownName, "Known"),
        (lambda m, x: m.update_optimization_config("tag", name="early"), InvalidSetting, "named 'early'"),
        (lambda m, x: m.get_receipts("model"), InvalidModel, "a str"),
        (lambda m, x: m.get_model_optimizations(None), InvalidModel, "a NoneType"),
    ],
)
def test_bad_input_is_one_clear_typed_error_and_the_model_is_as_before(
    manager: ModularOptimizationManager, model: nn.Module, call: Any, error: type[Exception], said: str
) -> None:
    before = fingerprint(model)
    with pytest.raises(error, match=said):
        call(manager, model)
    assert before.differences(fingerprint(model)) == []


def test_a_mistyped_word_is_no_leave_to_discard_what_the_user_changed(
    manager: ModularOptimizationManager, model: nn.Module
) -> None:
    manager.apply_optimizations(model, ["tag"])
    model[0].tag = "the user's"
    with pytest.raises(InvalidSetting, match="on_drift='discrad' is not one of raise, discard"):
        manager.remove_optimizations(model, on_drift="discrad")  # type: ignore[arg-type]
    assert model[0].tag == "the user's"


def test_what_a_copy_cannot_give_back_is_told(
    manager: ModularOptimizationManager, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    manager.apply_optimizations(model, ["tag"])
    twin = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, "inference_pio"):
        manager.remove_optimizations(twin)
    assert "tag cannot be taken back: this is a copy" in caplog.text
    with pytest.raises(VaultError, match="tag cannot be taken back: this is a copy"):
        manager.remove_optimizations(twin, ["tag"])
    assert manager.get_model_optimizations(twin) == ["tag"]


def test_an_order_for_what_is_switched_off_contradicts_itself(
    manager: ModularOptimizationManager, model: nn.Module
) -> None:
    manager.configure_optimization("tag", OptimizationConfig(name="tag", enabled=False))
    with pytest.raises(InvalidSetting, match="switched off"):
        manager.apply_optimizations(model, ["tag"])
    plan = manager.plan(model, [manager.wanted("tag", order=False), manager.wanted("early", order=False)], profile="p")
    assert [left.name for left in plan.left] == ["tag"]
