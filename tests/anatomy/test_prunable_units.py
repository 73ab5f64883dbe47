"""Kinds are walked as they are asked for, and configurations are told what all modules share."""

from __future__ import annotations

import pytest

from inference_pio.anatomy.prunable import Prunable
from inference_pio.anatomy.prunable_units import is_channels, paths_of, prunable_units, told_counts, units_at
from tests import tiny


def test_channels_are_always_there_and_others_when_asked_for() -> None:
    model = tiny.build("glm4_moe")
    kinds = {one.unit for one in prunable_units(model, []) if isinstance(one, Prunable)}
    assert kinds == {"mlp", "expert_width"}
    everything = [one for one in prunable_units(model, ["experts", "kv_heads"]) if isinstance(one, Prunable)]
    assert {one.unit for one in everything} == kinds | {"experts", "kv_heads"}
    assert len({one.path for one in everything}) == len(everything)
    assert paths_of(model, "experts") == ["model.layers.1.mlp"]
    assert [is_channels(one) for one in units_at(model, ["model.layers.1.mlp", "model.layers.0.mlp"]).values()] == [
        True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "key"), [("qwen3_moe", "num_experts"), ("glm4_moe", "n_routed_experts")])
def test_the_number_of_experts_is_told_under_the_familys_name(name: str, key: str) -> None:
    model = tiny.build(name)
    held = type(model.config).attribute_map.get(key, key)
    assert told_counts(model, {"config": model.config}, {"model.layers.1.mlp": 6}) == {f"config.{held}": 6}


def test_what_layers_do_not_share_is_not_told() -> None:
    model = tiny.build("llama")
    assert told_counts(model, {"config": model.config}, {"model.layers.1.mlp": 48}) == {}
    assert told_counts(model, {"config": model.config}, dict.fromkeys(paths_of(model, "kv_heads"), 1)) == {
        "config.num_key_value_heads": 1, "config.num_attention_heads": 2,
    }  # fmt: skip
