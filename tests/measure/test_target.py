from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from inference_pio.errors import MeasureError
from inference_pio.measure.target import check_measurable, input_device, max_positions, supported, vocab_size
from tests.tiny import build


@pytest.mark.parametrize(("name", "known"), [("llama", 131), ("gpt2", 128), ("qwen3_vl", 128), ("glm4_moe_lite", 128)])
def test_a_models_vocabulary_and_positions_are_found(name, known):
    model = build(name)
    assert vocab_size(model) == known
    assert max_positions(model) in (512, model.config.get_text_config().max_position_embeddings)
    assert input_device(model) == torch.device("cpu")


def test_a_plain_module_has_neither():
    model = build("plain")
    assert vocab_size(model) is None
    assert max_positions(model) is None


def test_tensors_on_the_meta_device_do_not_say_where_inputs_go():
    assert input_device(nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))) == torch.device("cpu")


def test_a_wrapped_forward_is_asked_through_its_class():
    model = build("llama")
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    assert supported(model, logits_to_keep=1, nonsense=2) == {"logits_to_keep": 1}
    model.forward = functools.partial(inner)
    assert supported(model, logits_to_keep=1, nonsense=2) == {"logits_to_keep": 1}


def test_training_mode_is_refused_with_the_way_out():
    with pytest.raises(MeasureError, match=r"training mode.*call model\.eval\(\)"):
        check_measurable(build("llama").train())


def test_what_is_no_model_is_refused():
    with pytest.raises(MeasureError, match=r"an nn\.Module; this is str"):
        check_measurable("llama")
