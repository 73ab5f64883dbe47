"""Attention with grouped heads is told in every family, has the library's bits, and asks its table as before."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from inference_pio.anatomy import fused_attention as room
from inference_pio.anatomy.call_guards import put_forward
from inference_pio.anatomy.fused_attention import (
    attention_forward,
    merged_attention_forward,
    qkv_of,
    why_no_fused_attention,
)
from inference_pio.anatomy.fused_norm import norm_forward
from inference_pio.anatomy.merged_linears import merge
from inference_pio.anatomy.parts import runs_attention
from inference_pio.undo.journal import Journal
from tests import tiny

GROUPED = ["llama", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe"]
KNOWN = ["mistral", "mixtral", "qwen2", "qwen2_moe", "granite"]
OTHERS = {
    "gemma2": "attn_logit_softcapping",
    "gpt_oss": "sinks",
    "phi3": "qkv_proj",
    "smollm3": "use_rope",
    "cohere": "computes something else",
    "olmo2": "needs more than is known here",
    "glm4": "computes something else",
}
SIZES = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}


def attention_of(family: str, **changed: Any) -> nn.Module:
    library = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    (name,) = [name for name in vars(library) if name.endswith("Attention") and name != "FlashAttention"]
    config = getattr(library, name.replace("Attention", "Config"))(num_hidden_layers=2, **SIZES, **changed)
    config._attn_implementation = "sdpa"
    made: nn.Module = getattr(library, name)(config, 0)
    return made.eval().requires_grad_(False)


def attentions(model: nn.Module) -> list[nn.Module]:
    text = getattr(getattr(model, "model", model), "language_model", model)
    return [module for module in text.modules() if runs_attention(module)]


def fuse(model: nn.Module, *, norms: bool = True, merging: bool = False) -> None:
    journal = Journal(model)
    with journal.step("fuse"):
        for attention in attentions(model):
            for name in ("q_norm", "k_norm") if norms and hasattr(attention, "q_norm") else ():
                put_forward(journal, attention.get_submodule(name), norm_forward)
            if merging:
                merge(journal, qkv_of(attention))
            put_forward(journal, attention, merged_attention_forward if merging else attention_forward)


@pytest.fixture
def rotations(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of the kernel, whether it norms as well."""
    calls: list[bool] = []
    kernel = room.norm_rotate

    def counted(*given: torch.Tensor, **how: Any) -> Any:
        calls.append(bool(how))
        return kernel(*given, **how)

    monkeypatch.setattr(room, "norm_rotate", counted)
    return calls


@pytest.mark.parametrize("name", GROUPED)
def test_attention_of_the_five_families_is_known(name: str) -> None:
    assert {why_no_fused_attention(module) for module in attentions(tiny.build(name))} == {None}


@pytest.mark.parametrize("family", KNOWN)
def test_attention_of_other_families_is_known(family: str) -> None:
    assert why_no_fused_attention(attention_of(family)) is None


@pytest.mark.parametrize("family", OTHERS)
def test_attention_that_does_more_is_told(family: str) -> None:
    assert OTHERS[family] in (why_no_fused_attention(attention_of(family)) or "")


def test_norms_that_do_not_fit_are_told() -> None:
    (attention, *_) = attentions(tiny.build("qwen3"))
    norm = attention.q_norm
    attention.q_norm = nn.LayerNorm(24)
    assert why_no_fused_attention(attention) == "the norms of its queries and keys are of another kind"
    attention.q_norm = norm
    norm.variance_epsilon = 0.5
    assert "not over the width of a head" in (why_no_fused_attention(attention) or "")


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded_with", ["eager", "sdpa"])
def test_it_has_the_same_bits(name: str, dtype: torch.dtype, loaded_with: str, rotations: list[bool]) -> None:
    model = tiny.build(name, dtype)
    model.set_attn_implementation(loaded_with)  # type: ignore[operator]
    before = tiny.logits(model, name)
    fuse(model)
    assert torch.equal(tiny.logits(model, name), before)
    assert rotations == [name != "llama"] * len(attentions(model)) * (4 if name == "qwen3_vl" else 2)
    given = tiny.inputs(name, model)
    given["attention_mask"][0, :3] = 0
    with torch.no_grad():
        padded = model(**given).logits
        assert torch.equal(padded, tiny.build(name, dtype)(**given).logits) or loaded_with == "eager"
    rotations.clear()
    model(**given)
    assert rotations == []  # gradients are wanted: the library's own forward


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_sliding_window_reaches_the_attention_function(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever name a class finds its window."""
    met: list[dict[str, Any]] = []

    def seen(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **rest: Any) -> Any:
        met.append(rest)
        return query.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "seen", seen)
    windowed = {"use_sliding_window": True, "max_window_layers": 0} if family == "qwen2" else {}
    attention = attention_of(family, sliding_window=7, **windowed)
    attention.config._attn_implementation_internal = "seen"  # type: ignore[union-attr]
    x, turns = torch.randn(1, 3, 32), torch.randn(2, 1, 3, 8)
    theirs = attention(x, (turns[0], turns[1]), None, note="kept")
    fuse(nn.Sequential(attention))
    ours = attention(x, (turns[0], turns[1]), None, note="kept")
    assert torch.equal(ours[0], theirs[0])
    assert met[0] == met[1]
    assert met[1]["sliding_window"] == 7
    assert met[1]["note"] == "kept"


@pytest.mark.parametrize("merging", [False, True])
def test_norms_and_layers_that_are_watched_are_called(merging: bool, rotations: list[bool]) -> None:
    model = tiny.build("qwen3")
    before = tiny.logits(model, "qwen3")
    fuse(model, merging=merging)
    seen: list[str] = []
    for attention in attentions(model):
        attention.k_norm.register_forward_hook(lambda module, given, out: seen.append("norm"))  # type: ignore[union-attr]
        attention.v_proj.register_forward_hook(lambda module, given, out: seen.append("value"))  # type: ignore[union-attr]
    assert torch.equal(tiny.logits(model, "qwen3"), before)
    assert sorted(seen) == ["norm"] * 6 + ["value"] * 6
    assert rotations == [False] * 6


def test_norms_of_the_library_are_called_where_ours_are_not(rotations: list[bool]) -> None:
    model = tiny.build("qwen3")
    before = tiny.logits(model, "qwen3")
    fuse(model, norms=False)
    assert torch.equal(tiny.logits(model, "qwen3"), before)
    assert set(rotations) == {False}


@pytest.mark.parametrize("name", GROUPED)
def test_one_product_makes_queries_keys_and_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(name)
    before, products, product = tiny.logits(model, name), [], room.merged_linear

    def counted(*given: Any) -> Any:
        products.append(product(*given))
        return products[-1]

    monkeypatch.setattr(room, "merged_linear", counted)
    fuse(model, merging=True)
    torch.testing.assert_close(tiny.logits(model, name), before, rtol=1e-5, atol=1e-5)
    assert products
    assert not any(one is None for one in products)
