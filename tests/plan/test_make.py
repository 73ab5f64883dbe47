"""Plans are made on a skeleton, for models that can be planned for."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.plan.make import check_model, name_of
from tests import tiny


@pytest.mark.parametrize("thing", [None, "llama", 3, nn.Linear])
def test_what_is_not_a_model_is_refused_by_its_type(thing: object) -> None:
    with pytest.raises(InvalidModel, match=r"nn\.Module"):
        check_model(thing)


def test_a_model_is_called_by_the_name_it_was_loaded_by() -> None:
    model = tiny.build("llama")
    assert name_of(model) == "LlamaForCausalLM"
    model.config.name_or_path = "somebody/llama"
    assert name_of(model) == "somebody/llama"
    assert name_of(nn.Linear(1, 1)) == "Linear"
