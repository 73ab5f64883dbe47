"""Absorbing is exact: the cache is never expanded, and what comes out is what expanding gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from inference_pio.kernels.latent_attention import latent_attention, naive_latent_attention

FLASH = {"nope": 192, "rope": 64, "value": 256}
SMALL = {"nope": 32, "rope": 32, "value": 64}


def tensors(
    batch: int, heads: int, queries: int, tokens: int, latent: int, nope: int, rope: int, value: int
) -> list[torch.Tensor]:
    """Queries, a cache whose two parts lie in one tensor, and the weight that expands it."""
    generator = torch.Generator().manual_seed(tokens)
    q_nope, q_rope = (torch.randn(batch, heads, queries, width, generator=generator) for width in (nope, rope))
    cache = torch.randn(batch, tokens, latent + rope, generator=generator)
    up = torch.randn(heads * (nope + value), latent, generator=generator) / latent**0.5
    return [q_nope, q_rope, cache[..., :latent], cache[..., latent:], up]


def assert_equal(got: torch.Tensor, wanted: torch.Tensor, relative: float = 1e-5) -> None:
    assert ((got.double() - wanted.double()).norm() / wanted.double().norm()).item() <= relative


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("heads", [3, 20])
@pytest.mark.parametrize(("latent", "sizes"), [(64, SMALL), (512, FLASH)])
@pytest.mark.parametrize("tokens", [3, 77, 257])
def test_absorbed_is_naive(queries: int, heads: int, latent: int, sizes: dict[str, int], tokens: int) -> None:
    given = tensors(2, heads, queries, tokens, latent, **sizes)
    lengths = torch.tensor([tokens])
    assert_equal(latent_attention(*given, lengths), naive_latent_attention(*given, lengths))


def test_rows_with_padding_see_their_own_tokens_alone() -> None:
    given = tensors(3, 20, 3, 77, 64, **SMALL)
    lengths, starts = torch.tensor([77, 40, 5]), torch.tensor([0, 13, 2])
    got = latent_attention(*given, lengths, starts)
    assert_equal(got, naive_latent_attention(*given, lengths, starts))
    for row in range(3):
        cut = [tensor[row : row + 1] for tensor in given[:4]]
        cut[2:] = [tensor[:, starts[row] : lengths[row]] for tensor in cut[2:]]
        alone = naive_latent_attention(*cut, given[4], lengths[row : row + 1] - starts[row])
        assert_equal(got[row], alone[0])


@pytest.mark.parametrize("added", [False, True])
def test_a_mask_says_what_lengths_say(added: bool) -> None:
    given = tensors(2, 3, 3, 33, 64, **SMALL)
    lengths, starts = torch.tensor([33, 20]), torch.tensor([4, 0])
    tokens, own = torch.arange(33), lengths.view(-1, 1, 1, 1) - 3 + torch.arange(3).view(1, 1, 3, 1)
    mask = (tokens <= own) & (tokens >= starts.view(-1, 1, 1, 1))
    if added:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    wanted = naive_latent_attention(*given, lengths, starts)
    assert_equal(latent_attention(*given, mask=mask, scale=64**-0.5), wanted)
    assert_equal(naive_latent_attention(*given, mask=mask), wanted)
    assert_equal(latent_attention(*given, lengths, mask=mask), wanted)


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    given = tensors(2, 3, 2, 9, 64, **SMALL)
    mask = torch.ones(2, 1, 2, 9, dtype=torch.bool)
    mask[1, :, 0] = False
    for attend in (latent_attention, naive_latent_attention):
        out = attend(*given, mask=mask)
        assert not out[1, :, 0].any()
        assert out[1, :, 1].all()


def test_naive_is_attention_over_what_the_weight_expands() -> None:
    q_nope, q_rope, latent, k_rope, up = tensors(2, 4, 5, 21, 64, **SMALL)
    expanded = F.linear(latent, up).view(2, 21, 4, 96).transpose(1, 2)
    keys = torch.cat((expanded[..., :32], k_rope[:, None].expand(-1, 4, -1, -1)), -1)
    mask = torch.ones(5, 21, dtype=torch.bool).tril(16)
    wanted = F.scaled_dot_product_attention(torch.cat((q_nope, q_rope), -1), keys, expanded[..., 32:], mask)
    got = naive_latent_attention(q_nope, q_rope, latent, k_rope, up, torch.tensor([21]))
    assert_equal(got, wanted)


def test_what_lies_behind_the_length_may_be_anything_to_the_naive_one() -> None:
    q_nope, q_rope, latent, k_rope, up = tensors(1, 3, 1, 12, 64, **SMALL)
    clean = naive_latent_attention(q_nope, q_rope, latent, k_rope, up, torch.tensor([7]))
    latent[:, 7:], k_rope[:, 7:] = float("nan"), float("nan")
    assert torch.equal(naive_latent_attention(q_nope, q_rope, latent, k_rope, up, torch.tensor([7])), clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_strays_no_further_than_expanding_in_it_does(dtype: torch.dtype) -> None:
    """torch's fused attention, on keys and values expanded in that precision, is what the library runs."""
    q_nope, q_rope, latent, k_rope, up = (tensor.to(dtype) for tensor in tensors(1, 20, 1, 257, 512, **FLASH))
    wanted = naive_latent_attention(q_nope, q_rope, latent, k_rope, up)
    expanded = F.linear(latent, up).view(1, 257, 20, -1).transpose(1, 2)
    keys = torch.cat((expanded[..., :192], k_rope[:, None].expand(-1, 20, -1, -1)), -1)
    fused = F.scaled_dot_product_attention(torch.cat((q_nope, q_rope), -1), keys, expanded[..., 192:])
    got = latent_attention(q_nope, q_rope, latent, k_rope, up)
    assert got.dtype == dtype
    strayed, allowed = ((out.float() - wanted).norm() / wanted.norm() for out in (got, fused))
    assert strayed <= 1.2 * allowed
