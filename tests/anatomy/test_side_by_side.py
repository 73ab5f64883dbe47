"""Layers of one input are found by their names under one parent, and are given one tensor indeed."""

from __future__ import annotations

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from inference_pio.anatomy.side_by_side import side_by_side, weight_of
from inference_pio.anatomy.walk import linears
from inference_pio.calibration.input_pass import collect_inputs
from tests import tiny
from tests.calibration.test_narrowed import text

ROLES = ("attention", "mlp")


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_those_that_are_together_are_given_one_tensor(name: str) -> None:
    model = tiny.build(name)
    groups = side_by_side(model, [path for path, _, role in linears(model) if role.startswith(ROLES)])
    readers = [set(one.readers) for one in collect_inputs(model, text(2), [p for one in groups for p in one.paths])]
    for one in groups:
        assert any(set(one.paths) <= shared for shared in readers)
        assert one.weight(model).shape == (sum(one.outputs), one.inputs)
        assert one.numbers == one.weight(model).numel()
    assert sum(len(one.paths) > 1 for one in groups) == (0 if name == "gpt2" else len(groups) - _alone(groups))


def _alone(groups: list) -> int:
    """Results, down projections, and the queries that come out of a latent."""
    return sum(one.name.endswith(("o_proj", "down_proj", "q_b_proj", "kv_b_proj")) for one in groups)


def test_a_conv1d_is_turned_to_be_as_a_linear_is() -> None:
    layer = tiny.build("gpt2").transformer.h[0].attn.c_attn
    assert torch.equal(weight_of(layer), layer.weight.t())


def test_queries_of_other_states_than_keys_are_alone() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_model": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = BartForConditionalGeneration(BartConfig(vocab_size=128, max_position_embeddings=32, **sizes, **heads))
    groups = side_by_side(model.eval(), [path for path, _, role in linears(model) if role.startswith(ROLES)])
    readers = [set(one.readers) for one in collect_inputs(model, text(2), [p for one in groups for p in one.paths])]
    for one in groups:
        assert any(set(one.paths) <= shared for shared in readers), one.paths
    cross = "model.decoder.layers.0.encoder_attn."
    assert (f"{cross}k_proj", f"{cross}v_proj") in {one.paths for one in groups}
