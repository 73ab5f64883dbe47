"""Gated MLPs are told by their bits and served in every family; other activations and watchers keep the library's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from inference_pio.anatomy import fused_mlp as room
from inference_pio.anatomy.call_guards import put_forward
from inference_pio.anatomy.fused_mlp import (
    gate_up_of,
    looks_gated,
    merged_mlp_forward,
    mlp_forward,
    why_no_gated_mlp,
)
from inference_pio.anatomy.merged_linears import merge
from inference_pio.formats.int8 import Int8Linear
from inference_pio.undo.journal import Journal
from tests import tiny


def mlp_of(activation: str = "silu", bias: bool = False) -> LlamaMLP:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 1}
    config = LlamaConfig(hidden_act=activation, mlp_bias=bias, **sizes)
    return LlamaMLP(config).eval().requires_grad_(False)


def fuse(mlp: nn.Module, *, merging: bool = False) -> None:
    journal = Journal(nn.ModuleList([mlp]))
    with journal.step("fuse"):
        if merging:
            merge(journal, gate_up_of(mlp))
        put_forward(journal, mlp, merged_mlp_forward if merging else mlp_forward)


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each call of the gate's kernel was given."""
    calls: list[int] = []
    kernel = room.silu_mul

    def counted(*given: torch.Tensor) -> torch.Tensor:
        calls.append(len(given))
        return kernel(*given)

    monkeypatch.setattr(room, "silu_mul", counted)
    return calls


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"])
def test_mlps_of_the_library_are_known(name: str) -> None:
    found = [module for module in tiny.build(name).modules() if looks_gated(module)]
    assert found
    assert [why_no_gated_mlp(module) for module in found] == [None] * len(found)


class Doubled(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_other_mlps_are_told() -> None:
    assert why_no_gated_mlp(mlp_of("gelu")) == "its activation is not SiLU"
    assert why_no_gated_mlp(mlp_of("swish")) is None
    doubled = mlp_of()
    doubled.__class__ = Doubled
    assert why_no_gated_mlp(doubled) is not None
    assert not looks_gated(nn.Linear(2, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_gate_is_one_kernel_with_the_same_bits(bias: bool, dtype: torch.dtype, gates: list[int]) -> None:
    mlp, x = mlp_of(bias=bias).to(dtype), torch.randn(2, 3, 8, dtype=dtype)
    before = mlp(x)
    fuse(mlp)
    assert torch.equal(mlp(x), before)
    assert torch.equal(mlp(x=x), before)  # by name the class's own forward answers
    assert gates == [2]


@pytest.mark.parametrize("bias", [False, True])
def test_gate_and_up_are_one_product(bias: bool, gates: list[int]) -> None:
    mlp, x = mlp_of(bias=bias), torch.randn(2, 3, 8)
    before = mlp(x)
    fuse(mlp, merging=True)
    torch.testing.assert_close(mlp(x), before)
    assert gates == [1]


def test_layers_are_called_where_somebody_watches_or_has_put_another(gates: list[int]) -> None:
    mlp, x = mlp_of(), torch.randn(2, 3, 8)
    before = mlp(x)
    fuse(mlp, merging=True)
    seen: list[torch.Size] = []
    handle = mlp.up_proj.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    assert torch.equal(mlp(x), before)
    assert (seen, gates) == ([torch.Size([2, 3, 12])], [2])
    handle.remove()
    handle = mlp.act_fn.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    assert torch.equal(mlp(x), before)
    assert (len(seen), gates) == (2, [2])
    handle.remove()
    mlp.gate_proj = Int8Linear.from_linear(mlp.gate_proj)
    compressed = mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    assert torch.equal(mlp(x), compressed)
    assert gates == [2, 2]


def test_gradients_reach_every_weight(gates: list[int]) -> None:
    mlp, x = mlp_of(), torch.randn(2, 3, 8)
    fuse(mlp, merging=True)
    mlp.requires_grad_()
    mlp(x).sum().backward()
    assert all(parameter.grad is not None for parameter in mlp.parameters())
    assert gates == []
