"""Shares add up, and a tied tensor counts once."""

from __future__ import annotations

import json

import pytest

from inference_pio.anatomy.coverage import coverage_of
from inference_pio.anatomy.roles import roles_of
from tests import tiny


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_roles_add_up_to_all_parameters(name: str) -> None:
    model = tiny.build(name)
    everything = coverage_of(model, roles_of(model))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert everything.parameters == everything.covered_parameters == count
    assert sum(of for _, of in everything.by_role.values()) == count
    assert everything.share == everything.share_of_bytes == 1.0
    assert coverage_of(model, ()).share == 0.0


def test_a_part_is_told_by_role() -> None:
    model = tiny.build("qwen3_moe")
    experts = [path for path, role in roles_of(model).items() if role == "experts"]
    found = coverage_of(model, experts)
    weights = sum(weight.numel() for path in experts for weight in model.get_submodule(path).parameters())
    assert found.by_role["experts"] == (weights, weights)
    assert found.by_role["attention.qkv"][0] == 0
    assert found.covered_parameters == weights
    assert json.loads(json.dumps(found.to_json()))["roles"]["experts"] == {"parameters": weights, "of": weights}
    assert "experts 100%" in str(found)
