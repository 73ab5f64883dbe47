"""The chosen experts' products against the library's own, bit for bit, and against their definition in float32."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Glm4MoeConfig, Glm4MoeLiteConfig, Qwen3MoeConfig
from transformers.models.glm4_moe import modeling_glm4_moe as glm4_moe
from transformers.models.glm4_moe_lite import modeling_glm4_moe_lite as glm4_moe_lite
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

from inference_pio.errors import InvalidSetting
from inference_pio.kernels import experts
from inference_pio.kernels.experts import expert_down, expert_gate_up, naive_expert_down, naive_expert_gate_up, two
from inference_pio.kernels.int8 import quantize_rows
from inference_pio.kernels.routing import RoutingRule, route

HIDDEN, INNER, EXPERTS, CHOSEN = 80, 48, 12, 3
SIZES = {"hidden_size": HIDDEN, "moe_intermediate_size": INNER, "num_experts_per_tok": CHOSEN}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _block(module: ModuleType, config_class: Any, name: str, way: str) -> nn.Module:
    count = "num_experts" if "Qwen" in name else "n_routed_experts"
    config = config_class(**SIZES, **{count: EXPERTS}, norm_topk_prob=True)
    config._experts_implementation = way
    block: nn.Module = getattr(module, name)(config)
    generator = torch.Generator().manual_seed(5)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return block


BLOCKS = {
    "qwen3_moe": (qwen3_moe, Qwen3MoeConfig, "Qwen3MoeSparseMoeBlock", RoutingRule(CHOSEN)),
    "glm4_moe": (glm4_moe, Glm4MoeConfig, "Glm4MoeMoE", RoutingRule(CHOSEN, "sigmoid", norm_floor=1e-20)),
    "glm4_moe_lite": (
        glm4_moe_lite,
        Glm4MoeLiteConfig,
        "Glm4MoeLiteMoE",
        RoutingRule(CHOSEN, "sigmoid", scale=1.8, norm_floor=1e-20),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_a_whole_block_has_the_librarys_bits(
    name: str, fused: bool, way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    *made, rule = BLOCKS[name]
    block = _block(*made, way).to(dtype)  # type: ignore[arg-type]
    if way == "batched_mm":  # what runs where reading an index would wait for the device
        monkeypatch.setattr(experts, "_products", experts._gathered)
    x = torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(2)).to(dtype)
    correction = getattr(block.gate, "e_score_correction_bias", None)
    routed = route(x, block.gate.weight, rule, correction=correction)
    shared, down = None, None
    if hasattr(block, "shared_experts"):
        mlp = block.shared_experts
        shared, down = (mlp.gate_proj.weight, mlp.up_proj.weight), mlp.down_proj.weight
        shared = torch.cat(shared) if fused else shared
    hidden = expert_gate_up(x, block.experts.gate_up_proj, routed.index, shared=shared)
    got = expert_down(hidden, block.experts.down_proj, routed.index, routed.weight, shared=down, residual=x)
    assert torch.equal(got, x + block(x[None])[0])


def tensors(dtype: torch.dtype = torch.float32, coded: bool = False, shared: bool = True) -> dict[str, Any]:
    """Tokens, experts, a shared one, an index of which two live elsewhere, and what goes with them."""
    generator = torch.Generator().manual_seed(9)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    made: dict[str, Any] = {
        "gate_up": draw(EXPERTS, 2 * INNER, HIDDEN),
        "down": draw(EXPERTS, HIDDEN, INNER),
        "shared_up": draw(2 * 56, HIDDEN) if shared else None,
        "shared_down": draw(HIDDEN, 56) if shared else None,
    }
    scales = dict.fromkeys(made)
    if coded:
        quantized = {name: quantize_rows(one) for name, one in made.items() if one is not None}
        scales |= {name: scale for name, (_, scale) in quantized.items()}
        made |= {name: codes for name, (codes, _) in quantized.items()}
    index = torch.stack([torch.randperm(EXPERTS, generator=generator)[:CHOSEN] for _ in range(5)])
    index[1, 2], index[4, 0] = EXPERTS, EXPERTS + 7
    weight = torch.rand(5, CHOSEN, generator=generator).to(dtype)
    return made | {
        "scales": scales,
        "x": draw(5, HIDDEN) * HIDDEN**0.5,
        "index": index,
        "weight": weight,
        "residual": draw(5, HIDDEN),
    }


def both(given: dict[str, Any], up: Any, down: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The two products, one after the other."""
    scales = given["scales"]
    hidden = up(
        given["x"], given["gate_up"], given["index"], shared=given["shared_up"], scales=scales["gate_up"],
        shared_scales=scales["shared_up"],
    )  # fmt: skip
    found = down(
        hidden, given["down"], given["index"], given["weight"], shared=given["shared_down"],
        residual=given["residual"], scales=scales["down"], shared_scales=scales["shared_down"],
    )  # fmt: skip
    return hidden, found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("way", ["_grouped", "_gathered"])
def test_they_are_their_definition(
    way: str, shared: bool, coded: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "_products", getattr(experts, way))
    given = tensors(dtype, coded, shared)
    wanted = both(given, naive_expert_gate_up, naive_expert_down)
    got = both(given, expert_gate_up, expert_down)
    rounded = coded or dtype is not torch.float32  # codes are multiplied in bfloat16 on a CPU
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype is dtype
        close = {"rtol": 2e-2, "atol": 2e-2} if rounded else {}
        torch.testing.assert_close(one.float(), other, **close)
    assert not got[0][1, 2 * INNER : 3 * INNER].any()  # it lives elsewhere


def test_the_definition_is_written_out() -> None:
    given = tensors(shared=False)
    hidden, found = both(given, naive_expert_gate_up, naive_expert_down)
    assert hidden.shape == (5, CHOSEN * INNER)
    expert = given["index"][0, 1]
    gate, up = (given["gate_up"][expert] @ given["x"][0]).chunk(2)
    torch.testing.assert_close(hidden[0, INNER : 2 * INNER], nn.functional.silu(gate) * up)
    parts = [
        given["weight"][0, slot] * (given["down"][given["index"][0, slot]] @ hidden[0].view(CHOSEN, -1)[slot])
        for slot in range(CHOSEN)
    ]
    torch.testing.assert_close(found[0], sum(parts) + given["residual"][0])


def test_room_that_is_given_is_used() -> None:
    given = tensors()
    hidden, found = both(given, expert_gate_up, expert_down)
    room = torch.full_like(hidden, float("nan")), given["residual"]
    into = expert_gate_up(given["x"], given["gate_up"], given["index"], shared=given["shared_up"], out=room[0])
    assert into is room[0]
    assert torch.equal(into, hidden)
    into = expert_down(
        hidden, given["down"], given["index"], given["weight"], shared=given["shared_down"], residual=room[1],
        out=room[1],
    )  # fmt: skip
    assert into is room[1]
    assert torch.equal(into, found)


def test_codes_without_scales_and_scales_without_codes_are_refused() -> None:
    given, coded = tensors(), tensors(coded=True)
    for weight, scales in ((coded["gate_up"], None), (given["gate_up"], coded["scales"]["gate_up"])):
        with pytest.raises(InvalidSetting, match="one scale a row"):
            expert_gate_up(given["x"], weight, given["index"], scales=scales)
    with pytest.raises(InvalidSetting, match="one scale a row"):
        expert_down(
            torch.zeros(5, CHOSEN * INNER), coded["down"], given["index"], given["weight"],
            scales=coded["scales"]["gate_up"],
        )  # fmt: skip


def test_gate_and_up_lie_in_one_tensor_or_in_two() -> None:
    fused = torch.arange(12.0).view(6, 2)
    gate, up = two(fused)
    assert gate is not None
    assert up is not None
    assert up.tolist() == fused[3:].tolist()
    assert two((gate, up)) == (gate, up)
    assert two(None) == (None, None)
