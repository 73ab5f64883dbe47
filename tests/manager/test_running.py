"""A call that runs is found on its thread's stack, whether the model carries guards or not."""

from __future__ import annotations

import threading

import pytest
from torch import nn

from inference_pio.errors import ModelBusy
from inference_pio.manager.running import threads_inside, wait_until_idle
from tests import tiny


def test_a_model_that_nobody_calls_has_no_thread_inside() -> None:
    model = tiny.build("llama")
    assert threads_inside(model) == set()
    wait_until_idle(model, 0)


def test_a_call_of_a_part_is_a_call_of_the_model_and_of_no_other() -> None:
    model, other = tiny.build("llama"), tiny.build("llama")
    seen: list[tuple[set[int], set[int]]] = []
    model.model.norm.register_forward_hook(lambda *_: seen.append((threads_inside(model), threads_inside(other))))
    model.model(**tiny.inputs("llama", model))
    assert seen == [({threading.get_ident()}, set())]


def test_a_forward_that_is_called_by_its_name_is_found_too() -> None:
    class Own(nn.Module):
        def forward(self) -> None:
            with pytest.raises(ModelBusy):
                wait_until_idle(self, 10)

    Own().forward()
