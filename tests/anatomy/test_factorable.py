"""Which layers may be kept in another shape: all of the decoder's, and reasons for the others."""

from __future__ import annotations

import warnings

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.factorable import factorable_sites
from tests import tiny


def found(model: nn.Module, *targets: str) -> dict[str, str | None]:
    return {site.path: site.skip for site in factorable_sites(model, Chosen(targets or None), frozenset())}


@pytest.mark.parametrize(
    ("name", "path", "told"),
    [
        ("llama", "lm_head", "head is kept"),
        ("qwen3_vl", "model.visual.blocks.0.mlp.linear_fc1", "vision tower is kept"),
        ("qwen3_moe", "model.layers.1.mlp.experts", "fused experts are kept"),
        ("glm4_moe_lite", "model.layers.0.self_attn.kv_b_proj", "expands a latent cache"),
    ],
)
def test_what_is_kept_has_its_reason(name: str, path: str, told: str) -> None:
    sites = found(tiny.build(name))
    reasons = {skip for place, skip in sites.items() if place == path or place.startswith(f"{path}.")}
    assert any(told in (reason or "") for reason in reasons), reasons
    assert None in sites.values()


def test_the_head_and_the_tower_are_taken_where_they_are_named() -> None:
    assert found(tiny.build("llama"), "head")["lm_head"] is None
    assert None in found(tiny.build("qwen3_vl"), "vision").values()


def test_shared_overridden_and_adapted_layers_are_kept() -> None:
    model = tiny.build("llama")
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    second.up_proj.weight = first.up_proj.weight
    first.down_proj.forward = lambda x: x
    nn.utils.parametrizations.weight_norm(second.down_proj)
    sites = found(model)
    for path, told in {
        "model.layers.0.mlp.up_proj": "shares its weights",
        "model.layers.1.mlp.up_proj": "shares its weights",
        "model.layers.0.mlp.down_proj": "overridden",
        "model.layers.1.mlp.down_proj": "overridden",
    }.items():
        assert told in (sites[path] or ""), path


def test_adapted_layers_are_kept() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
        model = get_peft_model(tiny.build("llama"), LoraConfig(target_modules=["q_proj"], r=2))
    told = {skip for path, skip in found(model).items() if "q_proj" in path}
    assert None not in told
    assert any("adapter" in (reason or "") for reason in told)


def test_a_model_that_is_one_layer_is_not_held_by_anything() -> None:
    assert found(nn.Linear(8, 8)) == {"": "it is the model itself, which nothing holds"}


def test_hooks_of_somebody_else_are_not_lost() -> None:
    model = tiny.build("llama")
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: None)
    model.model.layers[0].mlp.up_proj.register_full_backward_pre_hook(lambda *_: None)
    told = {path for path, skip in found(model).items() if "hooks of somebody else" in (skip or "")}
    assert told == {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"}


def test_what_is_read_in_place_of_called_is_kept() -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    told = {path for path, skip in found(model).items() if "reads its weight from beside it" in (skip or "")}
    assert told
    assert all(path.endswith("DenseReluDense.wo") for path in told)
    assert "reads its weight" in (found(tiny.build("qwen3_vl"), "vision")["model.visual.patch_embed.proj"] or "")
