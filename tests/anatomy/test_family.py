"""What kind of model a model says it is."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.anatomy.family import model_type_of
from tests import tiny


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_a_library_model_says_its_type(name: str) -> None:
    assert model_type_of(tiny.build(name)) == name


@pytest.mark.parametrize("config", [None, {"model_type": "llama"}, object()])
def test_other_models_have_none(config: object) -> None:
    model = nn.Linear(1, 1)
    model.config = config
    assert model_type_of(model) is None
    assert model_type_of(tiny.build("plain")) is None
