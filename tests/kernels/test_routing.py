"""Routing against the library's own routers, bit for bit, and against its definition in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Glm4MoeConfig, Glm4MoeLiteConfig, Qwen3MoeConfig, Qwen3VLMoeTextConfig
from transformers.models.glm4_moe import modeling_glm4_moe as glm4_moe
from transformers.models.glm4_moe_lite import modeling_glm4_moe_lite as glm4_moe_lite
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen3_vl_moe

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.routing import Routed, RoutingRule, naive_route, route

HIDDEN, EXPERTS = 72, 24
SIGMOID = RoutingRule(4, "sigmoid", scale=1.8, norm_floor=1e-20)
GROUPED = RoutingRule(4, "sigmoid", scale=2.5, groups=6, top_groups=2, norm_floor=1e-20)


def _qwen(module: Any, config_class: Any, name: str, norm: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    sizes = {"hidden_size": HIDDEN, "num_experts": EXPERTS, "num_experts_per_tok": 4}
    return getattr(module, name)(config_class(**sizes, **settings)), getattr(module, norm)(HIDDEN, 1e-6)


def _glm(module: Any, config_class: Any, name: str, norm: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    sizes = {"hidden_size": HIDDEN, "n_routed_experts": EXPERTS, "num_experts_per_tok": 4}
    return getattr(module, name)(config_class(**sizes, **settings)), getattr(module, norm)(HIDDEN, 1e-5)


def _routers() -> dict[str, tuple[RoutingRule, nn.Module, nn.Module]]:
    """Rules with the library's router and norm that they are to equal."""
    moe = ("Qwen3MoeTopKRouter", "Qwen3MoeRMSNorm")
    vl = ("Qwen3VLMoeTextTopKRouter", "Qwen3VLMoeTextRMSNorm")
    glm, lite = ("Glm4MoeTopkRouter", "Glm4MoeRMSNorm"), ("Glm4MoeLiteTopkRouter", "Glm4MoeLiteRMSNorm")
    grouped = {"n_group": 6, "topk_group": 2, "routed_scaling_factor": 2.5}
    return {
        "qwen3_moe": (RoutingRule(4), *_qwen(qwen3_moe, Qwen3MoeConfig, *moe, norm_topk_prob=True)),
        "qwen3_moe as scored": (
            RoutingRule(4, normalise=False),
            *_qwen(qwen3_moe, Qwen3MoeConfig, *moe, norm_topk_prob=False),
        ),
        "qwen3_vl_moe": (RoutingRule(4), *_qwen(qwen3_vl_moe, Qwen3VLMoeTextConfig, *vl)),
        "glm4_moe": (GROUPED, *_glm(glm4_moe, Glm4MoeConfig, *glm, **grouped)),
        "glm4_moe_lite": (SIGMOID, *_glm(glm4_moe_lite, Glm4MoeLiteConfig, *lite, routed_scaling_factor=1.8)),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", _routers())
@torch.no_grad()
def test_it_has_the_bits_of_the_librarys_router(name: str, dtype: torch.dtype) -> None:
    rule, router, norm = _routers()[name]
    generator = torch.Generator().manual_seed(7)
    router, norm = router.to(dtype), norm.to(dtype)
    router.weight.copy_(torch.randn(EXPERTS, HIDDEN, generator=generator))
    norm.weight.copy_(torch.rand(HIDDEN, generator=generator) + 0.5)
    correction = None
    if rule.scoring == "sigmoid":
        router.e_score_correction_bias = torch.randn(EXPERTS, generator=generator)
        correction = router.e_score_correction_bias
    x = torch.randn(8, HIDDEN, generator=generator).to(dtype)
    normed = norm(x)
    _, weight, index = router(normed)
    given = {"norm_weight": norm.weight, "eps": norm.variance_epsilon, "correction": correction}
    got = route(x, router.weight, rule, **given)
    assert torch.equal(got.normed, normed)
    assert torch.equal(got.index, index)
    assert torch.equal(got.weight, weight)
    assert got.weight.dtype is weight.dtype is rule.weight_dtype(dtype)
    assert torch.equal(route(normed, router.weight, rule, correction=correction).weight, weight)
    room = Routed(torch.empty_like(normed), torch.empty_like(index).int(), torch.empty_like(weight))
    into = route(x, router.weight, rule, out=room, **given)
    assert all(a is b for a, b in zip(into, room, strict=True))
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(room, got, strict=True))


@pytest.mark.parametrize(
    "rule", [RoutingRule(4), RoutingRule(3, normalise=False, scale=0.5), SIGMOID, GROUPED], ids=str
)
@pytest.mark.parametrize("corrected", [False, True])
def test_it_is_its_definition(rule: RoutingRule, corrected: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, gate = torch.randn(5, HIDDEN, generator=generator), torch.randn(EXPERTS, HIDDEN, generator=generator)
    correction = torch.randn(EXPERTS, generator=generator) if corrected and rule.scoring == "sigmoid" else None
    given = {"correction": correction, "norm_weight": torch.rand(HIDDEN, generator=generator), "eps": 1e-6}
    got, wanted = route(x, gate, rule, **given), naive_route(x, gate, rule, **given)
    order = got.index.argsort(), wanted.index.argsort()  # the library leaves the order of the chosen open
    assert torch.equal(got.index.gather(1, order[0]), wanted.index.gather(1, order[1]))
    torch.testing.assert_close(got.weight.gather(1, order[0]), wanted.weight.gather(1, order[1]))
    torch.testing.assert_close(got.normed, wanted.normed)


def test_the_definition_takes_the_lowest_of_equal_experts_and_groups() -> None:
    x, gate = torch.ones(1, 2), torch.ones(12, 2)
    assert naive_route(x, gate, RoutingRule(3)).index.tolist() == [[0, 1, 2]]
    gate[:3] = -1.0
    found = naive_route(x, gate, RoutingRule(2, "sigmoid", groups=4, top_groups=2))
    assert found.index.tolist() == [[3, 4]]


def test_only_chosen_groups_are_chosen_from() -> None:
    x, gate = torch.eye(4), torch.zeros(8, 4)
    gate[:, 0] = torch.tensor([9.0, 0.0, 0.0, 0.0, 5.0, 5.0, 4.0, 4.0])  # the best expert stands in a poor group
    rule = RoutingRule(2, "sigmoid", groups=2, top_groups=1)
    correction = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    for one in (naive_route, route):
        assert sorted(one(x[:1], gate, rule, correction=correction).index[0].tolist()) == [4, 5]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scoring": "tanh"}, "softmax or sigmoid, and not by 'tanh'"),
        ({"top_k": 0}, "top_k=0"),
        ({"groups": 2, "top_groups": 3}, "3 of 2 groups"),
    ],
)
def test_rules_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        RoutingRule(**({"top_k": 2} | settings))


@pytest.mark.parametrize("rule", [RoutingRule(9), RoutingRule(2, groups=3), RoutingRule(5, groups=4, top_groups=2)])
def test_so_are_rules_that_do_not_go_with_the_experts(rule: RoutingRule) -> None:
    with pytest.raises(InvalidSetting, match="does not go with 8 experts"):
        route(torch.zeros(1, 4), torch.zeros(8, 4), rule)
