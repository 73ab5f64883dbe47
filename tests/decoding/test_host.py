"""Steps in few calls: the plain form's bits, what was looked up forgotten with the engine, patterns still asked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio import get_optimization_manager
from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.anatomy.merged_linears import merge
from inference_pio.decoding.host import HostOperations
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.takeover import engine_of
from inference_pio.formats.exponent12 import Exponent12Linear
from inference_pio.formats.int4 import Int4Linear
from inference_pio.formats.int8 import Int8Linear
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.decoding.conftest import prompt, taken

FORMS: dict[str, Any] = {
    "plain": lambda layer: layer,
    "int8": Int8Linear.from_linear,
    "int4": lambda layer: Int4Linear.from_linear(layer, group=32),
    "exponent12": Exponent12Linear.from_linear,
}


def optimized(name: str, asked: dict[str, dict[str, Any]]) -> Any:
    model = tiny.build(name)
    get_optimization_manager().apply_optimizations(model, list(asked), parameters=asked)
    return model


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_projection_has_the_bits_of_the_plain_form(form: str, merging: bool) -> None:
    decoder = decoder_of(tiny.build("llama", dtype=torch.bfloat16))
    assert isinstance(decoder, Decoder)
    norm = decoder.layers[1].mlp_norm
    torch.manual_seed(0)
    pair = nn.ModuleList(FORMS[form](nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)) for _ in range(2))
    pair.requires_grad_(False)
    if merging and form != "int4":
        journal = Journal(pair)
        with journal.step("merge"):
            merge(journal, list(pair))
    x, residual = torch.randn(2, 64).bfloat16(), torch.randn(2, 32).bfloat16()
    norm = type(norm)(nn.RMSNorm(64, dtype=torch.bfloat16).requires_grad_(False), norm.eps)
    host, plain = HostOperations(), PlainOperations()
    for how in ({}, {"norm": norm}, {"norm": norm, "gated": True}, {"gated": True, "residual": residual}):
        for _ in range(2):  # looked up, and found again
            assert torch.equal(host.project(x, list(pair), **how), plain.project(x, list(pair), **how))
    alone = host.project(residual, [nn.Linear(32, 64, dtype=torch.bfloat16).requires_grad_(False)], residual=x)
    assert alone.shape == x.shape


def test_a_layer_with_a_forward_of_its_own_is_called() -> None:
    linear, x = nn.Linear(3, 2).requires_grad_(False), torch.randn(1, 3)
    linear.forward = lambda x: torch.ones(1, 2)  # type: ignore[method-assign]
    assert torch.equal(HostOperations().project(x, (linear,)), torch.ones(1, 2))


@pytest.mark.parametrize("held", ["buffer", "attribute"])
def test_a_layer_whose_weight_is_no_parameter_is_called(held: str) -> None:
    linear, x = nn.Linear(3, 2).requires_grad_(False), torch.randn(1, 3)
    wanted, weight = linear(x), linear.weight.detach()
    del linear.weight
    linear.register_buffer("weight", weight) if held == "buffer" else setattr(linear, "weight", weight)
    assert torch.equal(HostOperations().project(x, (linear,)), wanted)
    assert torch.equal(HostOperations().project(x, (linear, linear)), torch.cat((wanted, wanted), -1))


@pytest.mark.parametrize("move", ["rebound", "data", "module"])
def test_weights_that_lie_elsewhere_are_looked_up_anew(move: str) -> None:
    one = taken("qwen3", operations=HostOperations())
    given = {**prompt(), "max_new_tokens": 8, "do_sample": False}
    first, _ = one.both(**given)
    for model in (one.model, one.plain):
        mlp = model.model.layers[1].mlp
        if move == "rebound":
            mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight * -3)
        elif move == "data":
            mlp.down_proj.weight.data = mlp.down_proj.weight.data * -3
        else:
            mlp.down_proj = copy.deepcopy(mlp.down_proj)
            mlp.down_proj.weight.data.mul_(-3)
    ours, theirs = one.both(**given)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, first)


def test_closing_an_engine_lets_go_of_what_was_looked_up() -> None:
    one = taken("llama", operations=HostOperations())
    one.both(**prompt(), max_new_tokens=3)
    operations = one.engine.operations
    assert isinstance(operations, HostOperations)
    assert operations._products
    one.engine.close()
    assert not operations._products
    assert not operations._direct
    assert operations._turns is None


@pytest.mark.parametrize("padded", [0, 4])
@pytest.mark.parametrize("below", [{}, {"flash_attention": {}}, {"tensor_compression": {"kv_cache": "int8"}}], ids=str)
def test_with_and_without_attention_of_ours_tokens_are_the_same(below: dict[str, Any], padded: int) -> None:
    both = {**below, "flash_attention": {}} if "tensor_compression" in below else below
    plain = optimized("qwen3", both) if both else tiny.build("qwen3")
    ours = optimized("qwen3", {**both, "kernel_fusion": {}})
    given = {**prompt(tokens=90, padded=padded), "max_new_tokens": 90, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(**given), plain.generate(**given))
    engine = engine_of(ours)
    assert engine is not None
    assert not engine.counts.left
    operations = engine.operations
    assert isinstance(operations, HostOperations)
    assert set(operations._direct.values()) == {bool(both)}


def test_a_pattern_over_attention_is_asked_by_every_step() -> None:
    asked: dict[str, dict[str, Any]] = {
        "flash_attention": {},
        "sparse_attention": {"dense_below": 0, "window": 64, "sinks": 1, "min_coverage": 0, "tokens": 256},
    }
    plain, ours = optimized("qwen3", asked), optimized("qwen3", {**asked, "kernel_fusion": {}})
    given = {**prompt(rows=1, tokens=200), "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(**given), plain.generate(**given))
    engine = engine_of(ours)
    assert engine is not None
    assert not engine.counts.left
    assert isinstance(engine.operations, HostOperations)
    assert set(engine.operations._direct.values()) == {False}


def test_a_model_can_still_be_trained_after_steps_without_gradients() -> None:
    one = taken("qwen3_moe", operations=HostOperations())
    one.both(**prompt(), max_new_tokens=4)
    ids = prompt()["input_ids"]
    one.model.requires_grad_(True)
    one.model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in one.model.model.layers[0].self_attn.parameters())
