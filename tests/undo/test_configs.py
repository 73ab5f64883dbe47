from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.undo.configs import own_configs, put_back_at_the_end, snapshot
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.places import configs_of
from tests import tiny
from tests.undo.help import take_back


def test_two_models_on_one_configuration_do_not_see_each_others_edits() -> None:
    config = tiny.CONFIGS["qwen3_vl"]()
    one, two = (tiny.build("qwen3_vl", config=config) for _ in range(2))
    assert one.config is two.config is config
    befores = [fingerprint(one), fingerprint(two)]
    out = tiny.logits(two, "qwen3_vl")
    journals = [Journal(one), Journal(two)]
    for number, journal in enumerate(journals):
        with journal.step("(base)", into=journal.base):
            own_configs(journal, journal.model)
            journal.set(journal.model.config, "mark", number)
            journal.set(journal.model.config.text_config, "mark", number)
    assert (one.config.mark, two.config.mark) == (0, 1)
    assert not hasattr(config, "mark")
    assert torch.equal(tiny.logits(two, "qwen3_vl"), out)
    for journal, before in zip(journals, befores, strict=True):
        take_back(journal, journal.base)
        assert before.differences(fingerprint(journal.model)) == []
    assert one.config is two.config is config


def test_ties_between_configurations_stay() -> None:
    model = tiny.build("qwen3_vl")
    ties = [name for name, config in configs_of(model) if config is model.config.text_config]
    journal = Journal(model)
    with journal.step("(base)", into=journal.base):
        owned = own_configs(journal, model)
    assert [name for name, config in configs_of(model) if config is model.config.text_config] == ties
    assert model.model.language_model.config is model.config.text_config
    assert {id(config) for config in owned.copies} == {id(config) for _, config in configs_of(model)}


def test_a_model_without_a_configuration_owns_none() -> None:
    model = tiny.build("plain")
    journal = Journal(model)
    with journal.step("(base)", into=journal.base):
        assert own_configs(journal, model).copies == []
    assert journal.base.entries == []


def test_a_snapshot_is_not_changed_by_what_it_was_taken_of() -> None:
    config = tiny.CONFIGS["qwen3_vl"]()
    config.table = {"a": [1]}
    taken = snapshot(config)
    config.table["a"].append(2)
    assert taken["table"] == {"a": [1]}
    assert "text_config" not in taken


def test_what_is_set_within_is_put_back_with_an_error_too() -> None:
    model = tiny.build("qwen3_vl")
    model.config.gone, model.config.own = 1, [2]
    own, before = model.config.own, fingerprint(model)
    with pytest.raises(ZeroDivisionError), put_back_at_the_end(model):
        edit_and_fail(model.config)
    assert before.differences(fingerprint(model)) == []
    assert model.config.own is own
    assert not hasattr(model.config, "new")


def edit_and_fail(config: Any) -> None:
    config.text_config.architectures, config.new, config.own = ["Here"], 3, [2]
    del config.gone
    1 / 0
