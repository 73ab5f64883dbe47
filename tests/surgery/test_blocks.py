"""A model without some layers is one that its configuration builds: numbers and caches follow, and undo is exact."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference_pio.artifact import load, save
from tests import tiny
from tests.surgery.help import check_it_generates_and_comes_back, operate
from tests.surgery.test_removal import TEXT, six_layers

NAMES = ["llama", "gpt2", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"]


@pytest.mark.parametrize("name", NAMES)
def test_it_generates_and_comes_back_exactly(name: str) -> None:
    check_it_generates_and_comes_back(name, "blocks", TEXT)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qwen3_vl"])
def test_it_is_the_model_that_its_configuration_tells(name: str) -> None:
    model: Any = tiny.build(name)
    before = model.config.num_hidden_layers
    operate(model, "blocks", text=TEXT)
    assert model.config.num_hidden_layers == before - 1
    again = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


def test_what_is_left_are_the_other_layers_with_new_numbers() -> None:
    model = six_layers()
    layers = list(model.model.layers)
    receipt = operate(model, "blocks", text=TEXT, remove=2)
    gone = [int(path.rpartition(".")[2]) for path in receipt.decision["learned"]["blocks"]]
    left = [layer for number, layer in enumerate(layers) if number not in gone]
    assert all(one is other for one, other in zip(model.model.layers, left, strict=True))
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_vl", "glm4_moe"])
def test_what_is_saved_comes_back_without_a_text(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    operate(model, "blocks", text=TEXT)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))
