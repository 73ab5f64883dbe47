"""Norm and rotation on torch: the bits of the library in each of its forms, and where the columns end up."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest
import torch

from inference_pio.kernels import rotary as room
from inference_pio.kernels.rotary import choose_rotary_backend, naive_norm_rotate, norm_rotate
from tests.kernels.test_rms_norm import DTYPES, drawn, library
from tests.kernels.ulps import same_bits


@dataclass(frozen=True)
class Shape:
    """Sizes of what is rotated; `one_table` serves all rows of the batch."""

    batch: int = 2
    tokens: int = 5
    heads: int = 3
    key_heads: int = 1
    width: int = 24
    turned: int = 24
    one_table: bool = False


SHAPES = [
    Shape(),
    Shape(tokens=1, width=16, turned=8),
    Shape(batch=1, heads=4, key_heads=2, width=128, turned=128),
    Shape(batch=3, tokens=33, width=20, turned=6, one_table=True),
    Shape(tokens=1, heads=8, key_heads=8, width=2, turned=2),
]
FORMS = {
    "llama": ("llama", "apply_rotary_pos_emb"),
    "qwen3": ("qwen3", "apply_rotary_pos_emb"),
    "qwen3_vl": ("qwen3_vl", "apply_rotary_pos_emb"),
    "glm4_moe": ("glm4_moe", "apply_rotary_pos_emb"),
    "glm4_moe_lite": ("glm4_moe_lite", "apply_rotary_pos_emb_interleave"),
    "deepseek_v3": ("deepseek_v3", "apply_rotary_pos_emb_interleave"),
}


def inputs(shape: Shape, dtype: torch.dtype, apart: bool = False) -> tuple[torch.Tensor, ...]:
    """Queries, keys, cos and sin; `apart`: queries and keys are parts of one tensor."""
    heads = shape.heads + shape.key_heads
    both = drawn(shape.batch, shape.tokens, heads, shape.width, dtype=dtype)
    query, key = both.split([shape.heads, shape.key_heads], dim=2)
    if not apart:
        query, key = query.contiguous(), key.contiguous()
    rows = 1 if shape.one_table else shape.batch
    tables = drawn(2, rows, shape.tokens, shape.turned, dtype=torch.float32, seed=1)
    return query, key, tables[0].cos().to(dtype), tables[1].sin().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_it_has_the_librarys_bits(form: str, shape: Shape, dtype: torch.dtype) -> None:
    family, name = FORMS[form]
    apply = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)
    query, key, cos, sin = inputs(shape, dtype, apart=True)
    interleaved = name.endswith("interleave")
    if shape.turned < shape.width and form != "glm4_moe":
        query, key = query[..., : shape.turned], key[..., : shape.turned]
    kept = query.clone(), key.clone()
    wanted = apply(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    for got, expected in zip(norm_rotate(query, key, cos, sin, interleaved=interleaved), wanted, strict=True):
        assert same_bits(got, expected)
    assert torch.equal(query, kept[0])
    assert torch.equal(key, kept[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_its_definition(shape: Shape, interleaved: bool, dtype: torch.dtype) -> None:
    tensors = inputs(shape, dtype)
    for got, expected in zip(
        norm_rotate(*tensors, interleaved=interleaved),
        naive_norm_rotate(*tensors, interleaved=interleaved),
        strict=True,
    ):
        assert same_bits(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_come_first(shape: Shape, dtype: torch.dtype) -> None:
    query, key, cos, sin = inputs(shape, dtype)
    weights = [drawn(shape.width, dtype=dtype, seed=seed) for seed in (2, 3)]
    got = norm_rotate(query, key, cos, sin, query_norm=weights[0], key_norm=weights[1], eps=1e-5)
    normed = [library(x, weight, 1e-5) for x, weight in zip((query, key), weights, strict=True)]
    for ours, theirs in zip(got, norm_rotate(*normed, cos, sin), strict=True):
        assert same_bits(ours, theirs)
    one = norm_rotate(query, key, cos, sin, key_norm=weights[1], eps=1e-5)
    assert same_bits(one[0], norm_rotate(query, key, cos, sin)[0])
    assert same_bits(one[1], got[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("normed", [(), ("query_norm",), ("query_norm", "key_norm")])
@pytest.mark.parametrize("turned", [16, 6])
def test_queries_and_keys_of_one_product_have_the_same_bits(
    turned: int, normed: tuple[str, ...], interleaved: bool, dtype: torch.dtype
) -> None:
    """Of one token, what lies side by side is computed at once; a value beside it, or two batches, change nothing."""
    heads, key_heads, width = 3, 2, 16
    product = drawn(2, 1, (heads + 2 * key_heads) * width, dtype=dtype)
    kept = product.clone()
    parts = product.split([heads * width, key_heads * width, key_heads * width], dim=-1)
    query, key = (part.view(2, 1, -1, width) for part in parts[:2])
    cos, sin = drawn(2, 2, 1, turned, dtype=torch.float32, seed=1).cos().to(dtype)
    norms = {name: drawn(width, dtype=dtype, seed=seed) for seed, name in enumerate(normed, 2)}
    how = {**norms, "eps": 1e-5, "interleaved": interleaved}
    got = norm_rotate(query, key, cos, sin, **how)  # type: ignore[arg-type]
    wanted = norm_rotate(query.clone(), key.clone(), cos, sin, **how)  # type: ignore[arg-type]
    for one, other in zip(got, wanted, strict=True):
        assert same_bits(one, other)
    assert torch.equal(product, kept)
    joined = room._joined(query, key, norms.get("query_norm"), norms.get("key_norm"))
    assert (joined is None) == (len(normed) == 1)
    assert room._joined(query.clone(), key.clone(), None, None) is None
    assert room._joined(key, query, None, None) is None


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("heads_in", "tables_in"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_tables_of_another_dtype_widen_the_result_as_in_the_library(tokens: int, heads_in: str, tables_in: str) -> None:
    apply = importlib.import_module("transformers.models.llama.modeling_llama").apply_rotary_pos_emb
    query, key, cos, sin = inputs(Shape(tokens=tokens), getattr(torch, heads_in))
    cos, sin = cos.to(getattr(torch, tables_in)), sin.to(getattr(torch, tables_in))
    wanted = apply(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    for got, expected in zip(norm_rotate(query, key, cos, sin), wanted, strict=True):
        assert got.dtype == torch.float32
        assert same_bits(got, expected)


def test_gradients_flow() -> None:
    query, key, cos, sin = inputs(SHAPES[0], torch.float32)
    query.requires_grad_()
    (ours,) = torch.autograd.grad(norm_rotate(query, key, cos, sin)[0].square().sum(), query)
    (theirs,) = torch.autograd.grad(naive_norm_rotate(query, key, cos, sin)[0].square().sum(), query)
    torch.testing.assert_close(ours, theirs)


def test_the_backend_on_a_cpu_is_torch() -> None:
    assert choose_rotary_backend(*inputs(SHAPES[0], torch.float32)) == "torch"
