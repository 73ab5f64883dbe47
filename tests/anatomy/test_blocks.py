"""Blocks of a layer, taken apart."""

from __future__ import annotations

import torch
from torch import nn

from inference_pio.anatomy.blocks import attention_children, mlp_children, routers
from tests import tiny


def named(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def test_an_mlp_leads_away_from_the_residual_stream_and_back() -> None:
    fused = named(gate_up=nn.Linear(8, 40), act=nn.SiLU(), down=nn.Linear(20, 8))
    assert mlp_children(fused, 8) == {"gate_up": "mlp.gate_up", "down": "mlp.down"}
    assert mlp_children(named(a=nn.Linear(8, 20), b=nn.Linear(20, 8)), 8) == {"a": "mlp.gate_up", "b": "mlp.down"}


def test_what_only_resembles_an_mlp_is_left_alone() -> None:
    assert mlp_children(named(a=nn.Linear(8, 20), b=nn.Linear(20, 10)), 8) == {}
    assert mlp_children(named(a=nn.Linear(6, 20), b=nn.Linear(20, 8)), 8) == {}
    assert mlp_children(named(q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8)), 8) == {}
    assert mlp_children(named(a=nn.Linear(8, 20), b=nn.Linear(20, 8), norm=nn.LayerNorm(8)), 8) == {}
    assert mlp_children(nn.Module(), 8) == {}


def test_a_router_has_a_row_for_each_expert() -> None:
    experts = nn.Module()
    experts.weights = nn.Parameter(torch.ones(4, 6, 8))
    block = named(experts=experts, gate=nn.Linear(8, 4), other=nn.Linear(8, 5), shared_expert_gate=nn.Linear(8, 1))
    assert routers(block) == {"gate": "router", "shared_expert_gate": "router"}


def test_attention_layers_with_names_not_met_are_not_guessed() -> None:
    attention = tiny.build("llama").model.layers[0].self_attn
    attention.g_proj = nn.Linear(64, 64)
    assert "g_proj" not in attention_children(attention)
    assert attention_children(attention)["o_proj"] == "attention.out"
