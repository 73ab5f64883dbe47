from __future__ import annotations

import pytest
from torch import nn

from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage, Step
from inference_pio.contract.settings import Settings
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.undo.journal import Journal


class Sizes(Settings):
    size: int = 4


class Labels(OptimizationInterface):
    name = "labels"
    optimization_type = OptimizationType.COMPUTE
    Parameters = Sizes

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.set(model, "label", self.parameters.size)
        self.say(backend="plain", note="labelled")
        self.say(note="twice")
        return model


def test_parameters_are_checked_when_it_is_made() -> None:
    assert Labels({"size": 5}).parameters == Sizes(size=5)
    assert Labels().parameters == Sizes()
    with pytest.raises(UnknownName, match="unknown parameter 'sise' of labels"):
        Labels({"sise": 5})
    with pytest.raises(InvalidSetting, match="wrong settings for labels"):
        Labels({"size": "big"})


def test_one_without_parameters_takes_none() -> None:
    class Bare(Labels):
        Parameters = OptimizationInterface.Parameters

    assert Bare({}).parameters is not None
    with pytest.raises(UnknownName, match="None is known"):
        Bare({"size": 1})


def test_the_plain_answers_of_an_optimization() -> None:
    optimization = Labels()
    model = nn.Identity()
    (site,) = optimization.sites(model)
    assert (site.path, site.acts) == ("", True)
    assert optimization.decide(model, [site]) == {}
    assert optimization.decide_from_data(model, [site], {"size": 1}) == {"size": 1}
    assert optimization.preflight(model, [site]) is None
    assert optimization.report(model) == {}
    assert Labels.unavailable() is None
    assert optimization.stage is Stage.COMPUTATION


def test_a_class_without_an_apply_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="apply"):
        OptimizationInterface()  # type: ignore[abstract]


def test_outside_a_manager_it_says_how_it_is_meant_to_act() -> None:
    model = nn.Identity()
    with pytest.raises(InvalidSetting, match=r"apply_optimizations\(model, \['labels'\]\)"):
        Labels().apply(model)
    with pytest.raises(InvalidSetting, match="not applied through a manager"):
        Labels().remove(model)
    assert not hasattr(model, "label")


def test_within_a_step_it_acts_through_the_journal_and_talks_into_the_receipt() -> None:
    model = nn.Identity()
    journal = Journal(model)
    optimization = Labels({"size": 7})
    step = Step(journal, (), {})
    with journal.step("labels"):
        optimization._step = step
        optimization.apply(model)
    assert model.label == 7
    assert (step.backend, step.notes) == ("plain", ["labelled", "twice"])


def test_an_applied_one_is_removed_by_the_manager_it_was_given() -> None:
    optimization = Labels()
    seen: list[nn.Module] = []
    optimization._remover = lambda model: seen.append(model) or model
    model = nn.Identity()
    assert optimization.remove(model) is model
    assert seen == [model]


def test_stages_come_in_the_order_of_the_design() -> None:
    assert Stage.STRUCTURE < Stage.STORAGE < Stage.COMPUTATION < Stage.PLACEMENT
