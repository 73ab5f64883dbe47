"""Folds are found by who is given what, with nothing edited, and each that is left has its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.anatomy.walk import experts, linears
from inference_pio.calibration.folds import Fold, find_folds
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

KEPT = ("head", "router", "vision", "embedding", "adapter")


def layers_of(model: nn.Module) -> list[str]:
    return [path for path, _, role in (*linears(model), *experts(model)) if role not in KEPT]


def folds_of(name: str, model: nn.Module | None = None, without: str = "none") -> dict[str, Fold]:
    model = tiny.build(name) if model is None else model
    layers = [path for path in layers_of(model) if not path.endswith(without)]
    return {fold.name: fold for fold in find_folds(model, layers, tiny.inputs(name, model))}


def of_layer(folds: dict[str, Fold], layer: str) -> dict[str, Fold]:
    return {name.removeprefix(f"{layer}."): fold for name, fold in folds.items() if name.startswith(f"{layer}.")}


def test_of_a_dense_layer_norms_values_and_up_make_channels() -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    found = of_layer(folds_of("qwen3", model), "model.layers.1")
    assert before.differences(fingerprint(model)) == []
    assert list(found) == [
        "input_layernorm -> q_proj, k_proj, v_proj", "post_attention_layernorm -> gate_proj, up_proj",
        "self_attn.v_proj -> o_proj", "mlp.up_proj -> down_proj",
    ]  # fmt: skip
    assert not any(fold.left for fold in found.values())
    values, up = found["self_attn.v_proj -> o_proj"], found["mlp.up_proj -> down_proj"]
    assert (values.head, values.repeats) == (24, 2)
    assert (up.head, up.repeats) == (96, 1)
    assert values.channels(model) == (96,)


def test_of_a_mixture_a_router_and_shared_experts_read_the_same_channels() -> None:
    model = tiny.build("glm4_moe")
    found = of_layer(folds_of("glm4_moe", model), "model.layers.1")
    norm = found["post_attention_layernorm -> experts, gate_proj, up_proj"]
    assert norm.routers == ("model.layers.1.mlp.gate",)
    assert norm.channels(model) == (64,)
    own = found["mlp.experts -> experts"]
    assert own.reads_its_own
    assert own.channels(model) == (8, 48)
    assert not own.left
    assert "mlp.shared_experts.up_proj -> down_proj" in found


def test_latent_attention_has_norms_inside_and_no_values() -> None:
    found = of_layer(folds_of("glm4_moe_lite"), "model.layers.1")
    assert {"self_attn.q_a_layernorm -> q_b_proj", "self_attn.kv_a_layernorm -> kv_b_proj"} <= set(found)
    assert found["self_attn.v_proj -> o_proj"].left == "no v_proj that is compressed makes its channels"


def test_a_reader_that_is_kept_leaves_the_channels_as_they_are() -> None:
    found = of_layer(folds_of("llama", without="k_proj"), "model.layers.0")
    left = found["input_layernorm -> q_proj, v_proj"].left
    assert left == "their reader k_proj is kept as it is"


def test_a_norm_with_a_bias_with_hooks_or_of_somebody_else_is_left() -> None:
    assert {fold.left for fold in folds_of("gpt2").values()} == {"it is more than a norm with a weight"}
    model = tiny.build("llama")
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: None)
    model.model.layers[1].input_layernorm.forward = type(model.model.norm).forward.__get__(
        model.model.layers[1].input_layernorm
    )
    found = folds_of("llama", model)
    name = "model.layers.{}.input_layernorm -> q_proj, k_proj, v_proj"
    assert found[name.format(0)].left == "it carries hooks of somebody else"
    assert found[name.format(1)].left == "its forward is overridden"
    assert found[name.format(2)].left is None


def test_what_reaches_over_layers_is_left() -> None:
    model = tiny.build("llama")
    found = find_folds(model, ["lm_head"], tiny.inputs("llama", model))
    assert [fold.left for fold in found] == ["it makes channels for lm_head, outside of its own layer"]


def test_heads_of_an_unknown_width_are_left() -> None:
    model = tiny.build("llama")
    del model.model.layers[0].self_attn.head_dim
    model.model.layers[0].self_attn.forward = lambda *given, **named: (
        given[0] if given else named["hidden_states"],
        None,
    )
    found = folds_of("llama", model)["model.layers.0.self_attn.v_proj -> o_proj"]
    assert found.left == "32 channels are made and 64 read, in heads that are not known"


@pytest.mark.parametrize(("head", "wanted"), [(0, [1, 2, 3, 4]), (2, [2, 3, 2, 3]), (1, [1.5, 1.5, 3.5, 3.5])])
def test_channels_that_are_one_get_one_value(head: int, wanted: list[float]) -> None:
    fold = Fold("a", ("b",), head=head, repeats=2 if head else 1)
    assert fold.alike(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == wanted
