"""The interface: a class says what it is and acts through a manager's journal alone."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Step
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.undo.journal import Journal


class Label(OptimizationInterface):
    name = "label"
    optimization_type = OptimizationType.COMPUTE

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.set(model, "label", True)
        self.say(backend="here", note="done")
        return model


def test_a_class_without_an_apply_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="apply"):
        OptimizationInterface()  # type: ignore[abstract]


def test_acting_without_a_manager_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidSetting, match="get_optimization_manager"):
        Label().apply(nn.ReLU())
    with pytest.raises(InvalidSetting, match="nothing to take back"):
        Label().remove(nn.ReLU())


def test_by_default_the_whole_model_is_the_site_and_there_is_nothing_to_decide() -> None:
    (site,) = Label().sites(nn.ReLU())
    assert (site.path, site.acts) == ("", True)
    assert Label().decide(nn.ReLU(), (site,)) == {}
    assert Label().preflight(nn.ReLU(), (site,)) is None
    assert Label.unavailable() is None


def test_parameters_that_a_class_does_not_have_are_refused() -> None:
    with pytest.raises(UnknownName, match="of label"):
        Label({"level": 1})


def test_what_is_said_while_acting_reaches_the_step() -> None:
    model = nn.ReLU()
    journal = Journal(model)
    optimization = Label()
    optimization._step = step = Step(journal, (), {})
    with journal.step("label"):
        optimization.apply(model)
    assert (step.backend, step.notes) == ("here", ["done"])
