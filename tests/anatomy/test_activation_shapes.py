from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from inference_pio.anatomy.activation_shapes import PACKED_FROM, ActivationShapes, activation_shapes
from inference_pio.anatomy.decoder_stack import decoder_stack
from inference_pio.measure.allocations import peak_allocated
from inference_pio.plan.skeleton import skeleton_of
from tests import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
    "num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 8192,
}  # fmt: skip
CPU = torch.device("cpu")
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 192}


def shapes_of(model: Any) -> ActivationShapes:
    found = decoder_stack(model)
    assert not isinstance(found, str)
    return activation_shapes(model, found[1])


def test_widths_are_those_of_the_layers() -> None:
    shapes = shapes_of(tiny.build("qwen3"))
    made, turned = 4 * 24 + 2 * 2 * 24 + 64, 4 * 24 + 2 * 24
    assert shapes.state == 64 * 4
    assert shapes.attention == 4 * (made + 2 * turned + 4 * 24)
    assert shapes.mlp == 4 * 3 * 96
    assert (shapes.logits, shapes.loss, shapes.mask, shapes.longest) == (4 * 128, 4 * 3 * 128, 5, 512)
    assert shapes_of(tiny.build("qwen3", torch.bfloat16)).mlp == 2 * 3 * 96


def test_experts_count_as_often_as_a_token_goes_through_them() -> None:
    assert shapes_of(tiny.build("qwen3_moe")).mlp == 4 * max(2 * (64 + 4 * 48), 3 * 96)
    assert shapes_of(tiny.build("glm4_moe")).mlp == 4 * (2 * (64 + 4 * 48) + 3 * 48)


def test_latents_are_expanded_by_every_piece() -> None:
    assert shapes_of(tiny.build("glm4_moe_lite")).expanded == 4 * 4 * (16 + 20 + 16 + 8)
    assert shapes_of(tiny.build("glm4_moe")).expanded == 0


def test_keys_and_values_are_packed_in_bfloat16_on_a_cpu() -> None:
    for name, heads in (("qwen3", 2 * (24 + 24)), ("glm4_moe_lite", 4 * (16 + 8 + 20))):
        model = tiny.build(name, torch.bfloat16)
        found: Any = decoder_stack(model)
        assert activation_shapes(model, found[1], CPU).packed == 2 * heads
        assert activation_shapes(model, found[1], torch.device("cuda")).packed == 0
        assert activation_shapes(model.float(), found[1], CPU).packed == 0


@pytest.mark.parametrize("queries", [PACKED_FROM - 1, PACKED_FROM])
def test_torch_packs_no_more_than_that_and_none_for_fewer_queries(queries: int) -> None:
    query, (key, value) = torch.randn(1, 8, queries, 32).bfloat16(), torch.randn(2, 1, 2, 4096, 32).bfloat16()
    mask = torch.zeros(1, 1, queries, 4096, dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each has a block of its own to work with
    try:
        with peak_allocated(CPU) as peak:
            out = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    finally:
        torch.set_num_threads(threads)
    packed = key.nbytes + value.nbytes if queries >= PACKED_FROM else 0
    assert peak.peak_bytes - peak.start_bytes < out.nbytes + packed + key.nbytes / 2  # and what a block works with


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_a_skeleton_tells_the_same(name: str) -> None:
    model = tiny.build(name)
    shapes = shapes_of(model)
    assert shapes_of(skeleton_of(model)) == shapes
    assert min(shapes.state, shapes.attention, shapes.mlp, shapes.logits) > 0


@pytest.mark.parametrize("config", [Qwen3Config(**SIZES), Qwen3MoeConfig(**SIZES, **EXPERTS)], ids=["dense", "moe"])
@torch.no_grad()
def test_what_is_foretold_is_what_a_forward_allocates(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tokens = 2048
    ids = torch.randint(1, 60, (1, tokens), generator=torch.Generator().manual_seed(0))
    with peak_allocated(CPU) as peak:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    foretold = shapes_of(model).layer_peak(tokens, tokens)
    assert 0.8 < foretold / (peak.peak_bytes - peak.start_bytes) < 1.1
