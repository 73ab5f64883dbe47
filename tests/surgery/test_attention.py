"""Layers without attention add nothing and keep nothing; caches of every kind go on working, and undo is exact."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import JetMoeConfig, JetMoeForCausalLM

from inference_pio.artifact import load, save
from inference_pio.errors import InvalidModel
from inference_pio.surgery.attention import NoAttention
from tests import tiny
from tests.surgery.help import check_it_generates_and_comes_back, operate, relative
from tests.surgery.test_removal import TEXT, six_layers

NAMES = ["llama", "gpt2", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"]


@pytest.mark.parametrize("name", NAMES)
def test_it_generates_and_comes_back_exactly(name: str) -> None:
    check_it_generates_and_comes_back(name, "attention", TEXT)


def test_the_layer_computes_as_if_its_attention_said_nothing() -> None:
    model = six_layers()
    silenced = copy.deepcopy(model)
    receipt = operate(model, "attention", text=TEXT, remove=2, refit=False)
    for path in receipt.decision["learned"]["attention"]:
        silenced.get_submodule(path).self_attn.o_proj.weight.data.zero_()
    ids = torch.randint(1, 120, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(ids).logits, silenced(ids).logits)
    cache = model(ids, use_cache=True).past_key_values
    kept = [path for path in ("model.layers.2", "model.layers.3") if path in receipt.decision["learned"]["attention"]]
    assert kept
    for path in kept:
        assert not cache.layers[int(path.rpartition(".")[2])].is_initialized


def test_nothing_is_added() -> None:
    x = torch.randn(2, 3, 4)
    found, weights = NoAttention()(hidden_states=x, attention_mask=None)
    assert torch.equal(found, torch.zeros_like(x))
    assert weights is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_in_its_place_is_what_it_said_of_a_token_for_itself(dtype: torch.dtype) -> None:
    model: Any = tiny.build("llama", dtype)
    with torch.no_grad():
        for layer in model.model.layers:  # what it says depends on the token alone
            layer.self_attn.v_proj.weight.zero_()
            layer.self_attn.o_proj.bias = torch.nn.Parameter(torch.linspace(-1, 1, 64).to(dtype))
    before = tiny.logits(model, "llama")
    receipt = operate(model, "attention", text=TEXT, remove=2)
    assert len(receipt.decision["learned"]["attention"]) == 2
    instead = model.model.layers[1].self_attn.instead
    assert instead.weight.dtype == dtype
    assert float(instead.weight.detach().abs().max()) < 1e-3
    torch.testing.assert_close(instead.bias.detach(), torch.linspace(-1, 1, 64).to(dtype), rtol=1e-2, atol=1e-2)
    assert relative(tiny.logits(model, "llama"), before) < 1e-2


@pytest.mark.parametrize("edits", [("attention",), ("attention", "blocks")])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_is_saved_comes_back_without_a_text(name: str, edits: tuple[str, ...], tmp_path: Path) -> None:
    model = tiny.build(name)
    operate(model, *edits, text=TEXT)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


def test_an_attention_that_gives_more_than_a_pair_is_refused() -> None:
    sizes: Any = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    model = JetMoeForCausalLM(JetMoeConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, kv_channels=16))
    with pytest.raises(InvalidModel, match="does not give a pair"):
        operate(model.eval(), "attention", text=TEXT)
