from __future__ import annotations

import time

import pytest
from torch import nn

from inference_pio.undo.places import Places, chain, config_at, configs_of
from inference_pio.undo.slots import Slot
from tests import tiny


def test_a_module_has_the_first_path_it_is_met_at() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    places = Places(model)
    assert places.path(model) == ""
    assert places.path(shared) == "a.0"
    assert places.parents(shared) == [(model["a"], "0"), (model["b"], "0")]


def test_a_parent_that_let_go_of_its_child_is_no_parent_any_more() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    places = Places(model)
    model["a"][0] = nn.Identity()
    assert places.parents(shared) == [(model["b"], "0")]


def test_an_object_outside_the_model_has_a_name_of_its_own() -> None:
    assert Places(nn.Identity()).path(nn.Linear(1, 1)).startswith("<Linear at 0x")


def test_a_child_that_comes_is_learnt_with_all_below_it() -> None:
    model = nn.Sequential(nn.Identity())
    places = Places(model)
    new = nn.Sequential(nn.Linear(1, 1))
    model[0] = new
    places.learn_child(model, "0", new)
    assert places.path(new[0]) == "0.0"
    assert places.parents(new[0]) == [(new, "0")]


def test_one_child_under_two_names_of_one_parent_has_two_places() -> None:
    child = nn.Identity()
    model = nn.ModuleDict({"x": child, "y": child})
    assert Places(model).parents(child) == [(model, "x"), (model, "y")]


def test_modules_in_a_circle_are_walked_once() -> None:
    model = nn.Sequential(nn.Sequential())
    model[0].add_module("up", model)
    places = Places(model)
    assert places.path(model) == ""
    assert places.parents(model) == [(model[0], "up")]


def test_configurations_are_named_once_by_where_they_are_met_first() -> None:
    model = tiny.build("llama")
    assert [name for name, _ in configs_of(model)] == ["config"]
    assert Places(model).path(model.config) == "config"


def test_inner_configurations_are_found_though_no_module_holds_them() -> None:
    model = tiny.build("qwen3_vl")
    found = dict(configs_of(model))
    assert model.config.text_config in found.values()
    assert model.config.vision_config in found.values()
    bare = nn.Identity()
    bare.config = model.config
    assert {"config", "config.text_config", "config.vision_config"} <= set(dict(configs_of(bare)))


@pytest.mark.parametrize(("path", "steps"), [("", 0), ("a", 1), ("a.b.c", 3), ("<Linear at 0x1>", 0)])
def test_the_chain_leads_from_the_root_to_a_path(path: str, steps: int) -> None:
    assert len(chain(path)) == steps


def test_the_chain_names_the_slots_of_the_children_on_the_way() -> None:
    assert chain("a.b") == {Slot("", "module", "a"), Slot("a", "module", "b")}


def test_twenty_thousand_modules_are_placed_in_well_under_a_second() -> None:
    shared = nn.Identity()
    model = nn.Sequential(
        *[nn.Sequential(*[nn.Sequential(nn.Identity(), shared) for _ in range(100)]) for _ in range(100)]
    )
    seconds = []
    for _ in range(3):
        started = time.process_time()
        places = Places(model)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.8
    assert len(places.parents(shared)) == 10_000


def test_a_configuration_is_found_by_its_name() -> None:
    model = tiny.build("qwen3_vl")
    for name, config in configs_of(model):
        assert config_at(model, name) is config
    assert config_at(model, "model.language_model.layers.0.self_attn.config") is model.config.text_config
