"""Rows of kept tokens are the same bits, the others are refused or impossible."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.surgery.trimmed import TrimmedEmbedding, TrimmedHead

KEPT = torch.tensor([0, 3, 4, 9])


def embedding() -> tuple[nn.Embedding, TrimmedEmbedding]:
    whole = nn.Embedding(10, 6)
    return whole, TrimmedEmbedding(whole, nn.Parameter(whole.weight.detach()[KEPT]), KEPT)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 4, 1)])
def test_kept_tokens_are_embedded_as_before(shape: tuple[int, ...]) -> None:
    whole, fewer = embedding()
    ids = torch.tensor([9, 0, 4, 3]).view(shape)
    assert torch.equal(fewer(ids), whole(ids))
    assert torch.equal(copy.deepcopy(fewer)(ids), whole(ids))
    assert fewer(ids[:0]).shape == whole(ids[:0]).shape


def test_a_token_that_is_gone_is_refused_by_its_id() -> None:
    _, fewer = embedding()
    with pytest.raises(RefusedOnOptimized, match=r"token 7 was left out.*keep_ids"):
        fewer(torch.tensor([[0, 7]]))


@pytest.mark.parametrize("bias", [True, False])
def test_logits_lie_where_they_did_and_the_others_are_impossible(bias: bool) -> None:
    whole = nn.Linear(6, 10, bias=bias)
    own = nn.Parameter(whole.bias.detach()[KEPT]) if bias else None
    fewer = TrimmedHead(whole, nn.Parameter(whole.weight.detach()[KEPT]), own, KEPT)
    x = torch.randn(2, 3, 6)
    found = fewer(x)
    assert found.shape == (2, 3, 10)
    torch.testing.assert_close(found[..., KEPT], whole(x)[..., KEPT])
    gone = [token for token in range(10) if token not in KEPT]
    assert bool(found[..., gone].isneginf().all())


@pytest.mark.parametrize("token", [-1, -10, 10])
def test_an_id_that_was_none_before_is_none(token: int) -> None:
    whole, fewer = embedding()
    for one in (whole, fewer):
        with pytest.raises(IndexError):
            one(torch.tensor([[0, token]]))
