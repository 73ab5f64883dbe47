"""Single operations: what stands beside a projection, and norms that are there or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.anatomy.decoder_attention import GroupedAttention
from inference_pio.anatomy.merged_linears import merge
from inference_pio.decoding.operations import PlainOperations, norms_of
from inference_pio.undo.journal import Journal
from tests import tiny


def layer(name: str) -> Any:
    decoder = decoder_of(tiny.build(name))
    assert isinstance(decoder, Decoder)
    return decoder.layers[1]


def test_a_projection_takes_norm_gate_and_residual_along() -> None:
    parts, plain = layer("llama"), PlainOperations()
    x = torch.randn(2, tiny.HIDDEN)
    with torch.no_grad():
        normed = parts.mlp_norm.module(x)
        assert torch.equal(plain.project(x, (parts.mlp.up,), norm=parts.mlp_norm), parts.mlp.up(normed))
        hidden = plain.project(x, (parts.mlp.gate, parts.mlp.up), norm=parts.mlp_norm, gated=True)
        assert torch.equal(plain.project(hidden, (parts.mlp.down,), residual=x), x + parts.mlp.module(normed))
        both = plain.project(x, (parts.mlp.gate, parts.mlp.up))
        assert torch.equal(both, torch.cat((parts.mlp.gate(x), parts.mlp.up(x)), -1))


def test_layers_that_lie_side_by_side_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, x, calls = layer("llama"), torch.randn(2, tiny.HIDDEN), list[int]()
    pair = (parts.mlp.gate, parts.mlp.up)
    with torch.no_grad():
        separate = [PlainOperations().project(x, pair, gated=gated) for gated in (False, True)]
        journal = Journal(parts.module)
        with journal.step("merge"):
            merge(journal, pair)
        kept = nn.Linear.forward
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: calls.append(1) or kept(self, x))
        for gated, before in zip((False, True), separate, strict=True):
            torch.testing.assert_close(PlainOperations().project(x, pair, gated=gated), before)
    assert calls == []


def test_modules_of_other_formats_are_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    linear, x = Doubled(3, 2), torch.randn(1, 3)
    assert torch.equal(PlainOperations().project(x, (linear,)), linear(x))


def test_norms_of_heads_are_named_as_the_kernel_takes_them() -> None:
    attention = layer("qwen3").attention
    assert isinstance(attention, GroupedAttention)
    assert norms_of(attention)["eps"] == attention.query_norm.eps  # type: ignore[union-attr]
    assert norms_of(attention)["key_norm"] is attention.key_norm.weight  # type: ignore[union-attr]
    assert norms_of(layer("llama").attention) == {}
