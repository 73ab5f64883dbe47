"""An edit says how exact it is and needs only its sites and its writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import pytest
from torch import nn

from inference_pio.contract.site import Site
from inference_pio.surgery.edit import Edit, Exactness, Places
from inference_pio.surgery.edits import ALL
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.text import SurgeryText
from inference_pio.undo.journal import Journal


class Renamed(Edit):
    """The least that an edit must say."""

    name = "renamed"
    exactness = "bit"

    def sites(self, model: nn.Module) -> Iterable[Site]:
        return [Site("0")]

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        for path in places:
            journal.set(model.get_submodule(path), "label", "cut")
        return []


def test_the_least_edit_decides_nothing_and_learns_nothing() -> None:
    model, asked = nn.Sequential(nn.ReLU()), SurgeryParameters()
    edit = Renamed(asked)
    assert edit.decide(model, ["0"], {}) == {"0": None}
    assert edit.learn(model, {"0": None}, SurgeryText(model, asked), {}) is None
    with Journal(model).step("renamed"):
        edit.apply(Journal(model), model, {})


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_every_edit_says_how_exact_it_is(kind: type[Edit]) -> None:
    assert kind.exactness in get_args(Exactness)
    assert kind.__doc__
