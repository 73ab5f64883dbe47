"""A step over a latent cache against the library's attention: what it would hold, bit for bit, and what it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, Glm4MoeLiteConfig
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import Glm4MoeLiteAttention, Glm4MoeLiteRotaryEmbedding

from inference_pio.kernels.latent_attention import naive_latent_attention
from inference_pio.kernels.latent_step import (
    absorb,
    absorb_and_store,
    expand,
    latent_store,
    naive_absorb,
    naive_expand,
    naive_latent_row,
    naive_rotate,
    rotate,
)

HEADS, NOPE, ROPE, VALUE, LATENT, HIDDEN, CAPACITY = 3, 24, 16, 40, 48, 64, 9
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def library(interleaved: bool, dtype: torch.dtype) -> tuple[Glm4MoeLiteAttention, Glm4MoeLiteRotaryEmbedding]:
    config = Glm4MoeLiteConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=HEADS, num_hidden_layers=1, q_lora_rank=None,
        kv_lora_rank=LATENT, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=VALUE,
        rope_interleave=interleaved, rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    config._attn_implementation = "eager"
    config.head_dim = ROPE
    with torch.random.fork_rng():
        torch.manual_seed(4)
        attention = Glm4MoeLiteAttention(config, 0).to(dtype).eval()
        attention.kv_a_layernorm.weight.data.uniform_(0.5, 1.5)
    return attention, Glm4MoeLiteRotaryEmbedding(config)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_step_is_the_librarys_and_its_cache_has_the_same_bits(interleaved: bool, dtype: torch.dtype) -> None:
    attention, rotary = library(interleaved, dtype)
    tokens, rows = 5, 2
    x = torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    tables = rotary(x, torch.arange(CAPACITY)[None])
    held, cache = DynamicCache(), torch.full((rows, CAPACITY, 1, LATENT + ROPE), float("nan"), dtype=dtype)
    for token in range(tokens):  # one at a time, so that products are of the same shapes
        angles = tuple(table[:, token : token + 1] for table in tables)
        wanted, _ = attention(x[:, token : token + 1], angles, None, past_key_values=held)
        positions, lengths = torch.full((rows,), token, dtype=torch.int32), torch.tensor([token + 1]).int()
        query, kv = attention.q_proj(x[:, token]), attention.kv_a_proj_with_mqa(x[:, token])
        norm, up = attention.kv_a_layernorm, attention.kv_b_proj.weight
        absorbed, turned = absorb_and_store(
            query, up, kv, norm.weight, norm.variance_epsilon, tables[0][0], tables[1][0], positions, cache, lengths,
            heads=HEADS, nope=NOPE, interleaved=interleaved,
        )  # fmt: skip
    latent, rope = held.layers[0].keys, held.layers[0].values
    assert torch.equal(cache[:, :tokens, 0, :LATENT], latent[:, 0])
    assert torch.equal(cache[:, :tokens, 0, LATENT:], rope[:, 0])
    assert cache[:, tokens:].isnan().all()
    unchanged = torch.eye(LATENT).repeat(2 * HEADS, 1)  # keys and values are the latents
    weighted = naive_latent_attention(
        absorbed[:, :, None], turned[:, :, None], *cache[:, :, 0].split((LATENT, ROPE), -1), unchanged, lengths,
        scale=attention.scaling,
    )[:, :, 0]  # fmt: skip
    got = attention.o_proj(expand(weighted.to(dtype), up, NOPE))
    close = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(got, wanted[:, 0], rtol=close, atol=close)


def tensors(rows: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    angles = torch.rand(20, ROPE // 2, generator=generator).repeat(1, 2) * 6
    return {
        "query": draw(rows, HEADS * (NOPE + ROPE)),
        "up": draw(HEADS * (NOPE + VALUE), LATENT) / LATENT**0.5,
        "kv": draw(rows, LATENT + ROPE + 8)[:, : LATENT + ROPE],
        "norm_weight": draw(LATENT),
        "tables": (angles.cos(), angles.sin()),
        "positions": torch.randint(20, (rows,), generator=generator, dtype=torch.int32),
        "cache": draw(rows, CAPACITY, 1, LATENT + ROPE),
    }


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_part_is_its_definition(dtype: torch.dtype, interleaved: bool) -> None:
    given = tensors(dtype=dtype)
    tables, positions, query, up = given["tables"], given["positions"], given["query"], given["up"]
    close = {"rtol": 2e-2, "atol": 4e-2} if dtype is not torch.float32 else {"rtol": 1e-5, "atol": 1e-5}
    sizes = {"heads": HEADS, "nope": NOPE, "interleaved": interleaved}
    got = absorb(query, up, *tables, positions, **sizes)
    wanted = naive_absorb(query, up, *tables, positions, **sizes)
    for one, its in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.float(), its, **close)
    torch.testing.assert_close(expand(got[0], up, NOPE).float(), naive_expand(got[0], up, NOPE), **close)
    cache, lengths = given["cache"].clone(), torch.tensor([1, CAPACITY, 4], dtype=torch.int32)
    latent_store(
        given["kv"], given["norm_weight"], 1e-6, *tables, positions, cache, lengths, interleaved=interleaved
    )  # fmt: skip
    row = naive_latent_row(given["kv"], given["norm_weight"], 1e-6, *tables, positions, interleaved=interleaved)
    expected = given["cache"].float()
    expected[torch.arange(3), lengths.long() - 1, 0] = row
    torch.testing.assert_close(cache.float(), expected, **close)


def test_room_that_is_given_is_used() -> None:
    given = tensors()
    sizes = {"heads": HEADS, "nope": NOPE, "interleaved": True}
    wanted = absorb(given["query"], given["up"], *given["tables"], given["positions"], **sizes)
    room = tuple(torch.full_like(one, float("nan")) for one in wanted)
    got = absorb(given["query"], given["up"], *given["tables"], given["positions"], out=room, **sizes)
    assert all(one is its and torch.equal(one, told) for one, its, told in zip(got, room, wanted, strict=True))
    values = expand(wanted[0], given["up"], NOPE)
    into = torch.full_like(values, float("nan"))
    assert expand(wanted[0], given["up"], NOPE, into) is into
    assert torch.equal(into, values)


@pytest.mark.parametrize("length", [0, -1, CAPACITY + 1])
def test_a_token_without_a_place_is_not_stored(length: int) -> None:
    given = tensors(2)
    cache, lengths = given["cache"].clone(), torch.tensor([length, 3], dtype=torch.int32)
    latent_store(
        given["kv"], given["norm_weight"], 1e-6, *given["tables"], given["positions"], cache, lengths, interleaved=True
    )
    changed = (cache != given["cache"]).any(-1)[..., 0].nonzero().tolist()
    assert changed == [[1, 2]]


def test_absorbing_and_expanding_are_what_expanding_first_gives() -> None:
    given = tensors(2)
    up = given["up"].unflatten(0, (HEADS, -1))
    latent = torch.randn(LATENT, generator=torch.Generator().manual_seed(8))
    absorbed, _ = naive_absorb(
        given["query"], given["up"], *given["tables"], given["positions"], heads=HEADS, nope=NOPE, interleaved=True
    )
    keys = up[:, :NOPE] @ latent  # [H, N]
    nope = given["query"].view(2, HEADS, -1)[..., :NOPE]
    torch.testing.assert_close(absorbed @ latent, (nope * keys).sum(-1), rtol=1e-4, atol=1e-4)
    values = naive_expand(latent.expand(1, HEADS, -1), given["up"], NOPE).view(HEADS, -1)
    torch.testing.assert_close(values, F.linear(latent, up[:, NOPE:].flatten(0, 1)).view(HEADS, -1))


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_is_by_pairs(interleaved: bool) -> None:
    angles = torch.tensor([[0.3, 1.1, 0.3, 1.1]])
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    first, second = (x[:, 0::2], x[:, 1::2]) if interleaved else (x[:, :2], x[:, 2:])
    cos, sin = angles[:, :2].cos(), angles[:, :2].sin()
    wanted = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    for turn in (rotate, naive_rotate):
        got = turn(x, angles.cos(), angles.sin(), torch.zeros(1, dtype=torch.int32), interleaved=interleaved)
        torch.testing.assert_close(got, wanted)
