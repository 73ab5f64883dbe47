"""Several edits as one for other threads, also where nothing stands between two of them."""

from __future__ import annotations

import threading

import pytest
import torch

from inference_pio.errors import ModelBusy
from inference_pio.manager import get_optimization_manager, kept_open
from inference_pio.manager.session import session_of
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny


def test_guards_stay_while_nothing_stands_and_go_at_the_end() -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    before = fingerprint(model)
    said = tiny.logits(model, "llama")
    with manager.several_edits(model):
        assert "forward" in model.__dict__
        assert torch.equal(tiny.logits(model, "llama"), said)
        manager.apply_optimizations(model, ["flash_attention"])
        manager.remove_optimizations(model)
        assert "forward" in model.__dict__
    assert session_of(model) is None
    assert before.differences(fingerprint(model)) == []
    assert model not in manager._models


def test_what_stands_at_the_end_stays() -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    before = fingerprint(model)
    manager.apply_optimizations(model, ["flash_attention"])
    with manager.several_edits(model):
        manager.set_target(model, ["kernel_fusion"])
    assert manager.get_model_optimizations(model) == ["kernel_fusion"]
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_a_call_that_waits_is_not_waited_for() -> None:
    """The call is on the stack of its thread, inside the model's forward: a first apply would take it for a reader."""
    model, manager = tiny.build("llama"), get_optimization_manager()
    manager.apply_optimizations(model, ["flash_attention"])
    answered: list[torch.Tensor] = []
    caller = threading.Thread(target=lambda: answered.append(tiny.logits(model, "llama")))
    with manager.several_edits(model):
        caller.start()
        caller.join(timeout=0.2)
        manager.remove_optimizations(model)
        manager.set_target(model, ["kernel_fusion"], timeout_s=0.5)
        assert not answered
    caller.join(timeout=30)
    assert torch.equal(answered[0], tiny.logits(model, "llama"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelBusy])
def test_whatever_ends_it_nothing_is_left_behind(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    before = fingerprint(model)
    with pytest.raises(error), manager.several_edits(model):
        raise error
    assert before.differences(fingerprint(model)) == []

    def fails(*given: object) -> None:
        raise error

    monkeypatch.setattr(kept_open, "install_guards", fails)
    with pytest.raises(error), manager.several_edits(model):
        pytest.fail("it has not begun")
    assert before.differences(fingerprint(model)) == []
