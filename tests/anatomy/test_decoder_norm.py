"""Norms are told by what they hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.decoder_norm import Norm, norm_of
from tests import tiny


def test_the_librarys_norms_are_known_with_their_epsilon() -> None:
    model: Any = tiny.build("qwen3")
    norm = norm_of(model.model.layers[0].self_attn.q_norm)
    assert isinstance(norm, Norm)
    assert norm.eps == model.config.rms_norm_eps
    assert norm.weight is model.model.layers[0].self_attn.q_norm.weight
    assert isinstance(norm_of(nn.RMSNorm(4, eps=1e-5)), Norm)


def test_norms_with_more_or_less_are_told() -> None:
    for other in (nn.LayerNorm(4), nn.RMSNorm(4), nn.Identity(), nn.RMSNorm((2, 4), eps=1e-5)):
        assert norm_of(other) == f"{type(other).__name__} is no root-mean-square norm with a weight and nothing else"
    biased = nn.RMSNorm(4, eps=1e-5)
    biased.register_buffer("shift", torch.zeros(4))
    assert isinstance(norm_of(biased), str)
