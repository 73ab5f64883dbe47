"""RMSNorms of the library are told by their bits; others are passed over, and hooks are never passed by."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy import fused_norm as room
from inference_pio.anatomy.call_guards import put_forward
from inference_pio.anatomy.fused_norm import (
    added_and_normed,
    eps_of,
    is_readable,
    norm_forward,
    why_no_rms_norm,
)
from inference_pio.undo.journal import Journal

KNOWN = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "glm4_moe", "glm4_moe_lite", "deepseek_v3"]


class OnePlus(nn.Module):
    """It looks like a norm of the library, and is not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.zeros(width)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (1 + self.weight) * wide.to(x.dtype)


def norm_of(family: str, name: str = "RMSNorm", width: int = 8, eps: float = 1e-5) -> nn.Module:
    library = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kind = next(value for key, value in vars(library).items() if key.endswith(name) and isinstance(value, type))
    made: nn.Module = kind(width, eps)
    nn.init.normal_(made.weight)  # type: ignore[arg-type]
    return made.eval()


def fused(norm: nn.Module) -> nn.Module:
    model = nn.Sequential(norm)
    journal = Journal(model)
    with journal.step("fuse"):
        put_forward(journal, norm, norm_forward)
    return norm


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels were called."""
    calls: list[str] = []

    def watched(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            calls.append(name)
            return kernel(*given)

        return call

    for name in ("rms_norm", "add_rms_norm"):
        monkeypatch.setattr(room, name, watched(name, getattr(room, name)))
    return calls


@pytest.mark.parametrize("family", KNOWN)
def test_norms_of_the_library_are_known(family: str) -> None:
    norm = norm_of(family)
    assert why_no_rms_norm(norm) is None
    assert eps_of(norm) == 1e-5


def test_other_norms_are_told() -> None:
    assert "a LayerNorm, for one, has a bias" in (why_no_rms_norm(nn.LayerNorm(4)) or "")
    assert why_no_rms_norm(norm_of("gemma")) is not None
    assert "computes something else" in (why_no_rms_norm(OnePlus(4)) or "")
    assert "no norm with one weight" in (why_no_rms_norm(nn.Linear(3, 3, bias=False)) or "")
    assert "epsilon" in (why_no_rms_norm(nn.RMSNorm(4)) or "")  # None: an epsilon of the dtype
    assert why_no_rms_norm(nn.RMSNorm(4, eps=1e-6)) is not None  # rounds less often
    replaced = norm_of("llama")
    replaced.forward = replaced.forward
    assert why_no_rms_norm(replaced) == "its forward is overridden by somebody else"


def test_it_is_served_where_the_call_is_plain(kernel_calls: list[str]) -> None:
    norm, x = norm_of("llama"), torch.randn(2, 8)
    before = norm(x)
    fused(norm)
    assert torch.equal(norm(x), before)
    assert kernel_calls == []
    with torch.no_grad():
        assert torch.equal(norm(x), before)
        assert kernel_calls == ["rms_norm"]
        assert torch.equal(norm(hidden_states=x), before)
        norm.train()
        assert torch.equal(norm(x), before)
    assert kernel_calls == ["rms_norm"]


def test_an_addition_is_part_of_it_unless_somebody_watches(kernel_calls: list[str]) -> None:
    norm, x, residual = norm_of("llama"), torch.randn(2, 8), torch.randn(2, 8)
    with torch.no_grad():
        summed = residual + x
        normed = norm(summed)
        assert not is_readable(norm)
        for expected in (added_and_normed(norm, x, residual), added_and_normed(fused(norm), x, residual)):
            assert torch.equal(expected[0], normed)
            assert torch.equal(expected[1], summed)
        assert kernel_calls == ["add_rms_norm"]
        seen: list[torch.Tensor] = []
        norm.register_forward_hook(lambda module, given, out: seen.append(out))
        assert not is_readable(norm)
        assert torch.equal(added_and_normed(norm, x, residual)[0], normed)
    assert len(seen) == 1
    assert kernel_calls == ["add_rms_norm", "rms_norm"]
