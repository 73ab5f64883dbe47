"""MLPs come apart into gates and experts; others say what is in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.decoder_mlp import GatedMlp, Mixture, is_silu, mlp_parts
from inference_pio.kernels.routing import RoutingRule
from tests import tiny


def mlp(name: str, layer: int = 1) -> Any:
    model: Any = tiny.build(name)
    return model.model.layers[layer].mlp


def test_gated_mlps_and_mixtures_tell_their_parts() -> None:
    module = mlp("llama")
    found = mlp_parts(module)
    assert isinstance(found, GatedMlp)
    assert (found.gate, found.up, found.down) == (module.gate_proj, module.up_proj, module.down_proj)
    module = mlp("qwen3_moe")
    mixture = mlp_parts(module)
    assert isinstance(mixture, Mixture)
    assert (mixture.rule, mixture.shared, mixture.correction) == (RoutingRule(2), None, None)
    module = mlp("glm4_moe")
    mixture = mlp_parts(module)
    assert isinstance(mixture, Mixture)
    scale = module.gate.routed_scaling_factor
    assert mixture.rule == RoutingRule(2, "sigmoid", True, scale, 1, 1, 1e-20)
    assert mixture.correction is module.gate.e_score_correction_bias
    assert mixture.shared is not None
    assert mixture.shared.module is module.shared_experts


def test_silu_is_told_by_what_it_computes() -> None:
    assert is_silu(nn.functional.silu)
    assert is_silu(lambda x: x * x.sigmoid())
    assert not any(map(is_silu, (nn.GELU(), nn.ReLU(), torch.sigmoid, 3)))


def _gelu(module: Any) -> None:
    module.act_fn = nn.GELU()


def _adapter(module: Any) -> None:
    wrapped = nn.Module()
    wrapped.base_layer = module.up_proj
    module.up_proj = wrapped


def _misfit(module: Any) -> None:
    module.up_proj = nn.Linear(tiny.HIDDEN, 7)


def _more(module: Any) -> None:
    module.extra = nn.Linear(2, 2)


CHANGES: dict[str, Callable[[Any], None]] = {
    "does not gate by SiLU": _gelu,
    "an adapter is wrapped": _adapter,
    "layers do not fit each other": _misfit,
    "more weights than a gated MLP": _more,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_other_mlps_say_what_is_in_the_way(reason: str) -> None:
    module = mlp("llama")
    CHANGES[reason](module)
    found = mlp_parts(module)
    assert isinstance(found, str)
    assert reason in found


def _odd_router(module: Any) -> None:
    del module.gate.norm_topk_prob


def _ungrouped_router(module: Any) -> None:
    module.gate.num_group = None


def _shared_gelu(module: Any) -> None:
    module.shared_experts.act_fn = nn.GELU()


def _more_children(module: Any) -> None:
    module.shared_expert_gate = nn.Linear(2, 1)


MIXED_CHANGES: dict[str, Callable[[Any], None]] = {
    "Glm4MoeTopkRouter is a router of another kind": _odd_router,
    "is a router of another kind than those known": _ungrouped_router,
    "the shared expert of": _shared_gelu,
    "is not a router, fused experts and a shared expert": _more_children,
}


@pytest.mark.parametrize("reason", MIXED_CHANGES)
def test_other_mixtures_say_it_too(reason: str) -> None:
    module = mlp("glm4_moe")
    MIXED_CHANGES[reason](module)
    found = mlp_parts(module)
    assert isinstance(found, str)
    assert reason in found
