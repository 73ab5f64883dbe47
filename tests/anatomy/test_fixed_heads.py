"""Models whose heads follow a pattern answer as if those heads had its mask, however they are run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StaticCache

from inference_pio.anatomy.attention_function import add_pattern, run_pattern
from inference_pio.anatomy.fixed_heads import FIXED_HEADS, FixedHeads, attend_with_fixed_heads, take_heads
from inference_pio.anatomy.pattern_counts import PatternCounts
from inference_pio.anatomy.walk import attention_modules
from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.fixed_pattern import FixedPattern
from inference_pio.undo.journal import Journal
from tests import tiny

PATTERN = FixedPattern(64, 64)
LENGTH = 460
NAMED = "inference_pio_test_mask_of_the_pattern"
TEXT = list(tiny.HF_NAMES)


def _by_mask(attend: Any, module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **rest: Any) -> Any:
    """The truth: every head dense or with the mask of the pattern, by definition; one row of a batch at a time."""
    heads = vars(module)[FIXED_HEADS]
    group, queries = query.shape[1] // key.shape[1], query.shape[2]
    outs = []
    for row in range(query.shape[0]):
        seen = None if mask is None else mask[min(row, mask.shape[0] - 1), 0]
        end = (key.shape[2] if queries == 1 else queries) if seen is None else int(seen[-1].nonzero().max()) + 1
        start = 0 if seen is None else int(seen[-1].nonzero().min())
        allowed = torch.zeros(query.shape[1], queries, key.shape[2], dtype=torch.bool)
        causal = torch.ones(queries, end, dtype=torch.bool).tril(end - queries)
        causal[:, :start] = False
        allowed[:, :, :end] = causal
        own = torch.zeros(queries, key.shape[2], dtype=torch.bool)
        rows = min(queries, end - start)
        own[-rows:, start:end] = heads.pattern.mask(rows, end - start)
        if end - start >= heads.dense_below:
            for head in heads.key_heads:
                allowed[head * group : (head + 1) * group] = own
        one = slice(row, row + 1)
        out = naive_attention(query[one], key[one], value[one], allowed, scale=rest.get("scaling"))
        outs.append(out.nan_to_num(0.0).transpose(1, 2))
    return torch.cat(outs), None


def _prepared(name: str, pattern: str, key_heads: tuple[int, ...] = (1,), dense_below: int = 0) -> Any:
    add_pattern(FIXED_HEADS, attend_with_fixed_heads)
    add_pattern(NAMED, _by_mask)
    model = tiny.build(name)
    journal, counts = Journal(model), PatternCounts()
    found = [(path, module) for path, module, role in attention_modules(model) if role == "attention"]
    with journal.step("pattern"):
        for _, module in found:
            journal.set(module, FIXED_HEADS, FixedHeads(PATTERN, key_heads, dense_below, counts))
        run_pattern(journal, model, [path for path, _ in found], pattern)
    model.counts = counts
    return model


def _pair(name: str, **how: Any) -> tuple[Any, Any]:
    return _prepared(name, FIXED_HEADS, **how), _prepared(name, NAMED, **how)


def _tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 120, (rows, length), generator=torch.Generator().manual_seed(3))


def _close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_a_prompt_is_computed_with_the_mask_of_the_pattern(name: str) -> None:
    model, truth = _pair(name)
    tokens = _tokens(2, LENGTH)
    got = model(input_ids=tokens).logits
    _close(got, truth(input_ids=tokens).logits)
    assert (got - tiny.build(name)(input_ids=tokens).logits).abs().max() > 1e-3  # the pattern does leave out something
    counted = model.counts.to_json()
    assert set(counted["sparse_calls"]) == {"prefill"}
    assert 0 < counted["density"] < 1


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_pieces_and_single_tokens_see_what_the_whole_saw(name: str) -> None:
    model = _prepared(name, FIXED_HEADS)
    tokens = _tokens(1, LENGTH)
    whole, parts, cache = model(input_ids=tokens).logits, [], None
    for first, last in ((0, 300), (300, 301), (301, 450), *((place, place + 1) for place in range(450, LENGTH))):
        out = model(input_ids=tokens[:, first:last], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    _close(torch.cat(parts, 1), whole)
    assert set(model.counts.to_json()["sparse_calls"]) == {"prefill", "decode"}
    assert model.counts.to_json()["dense_calls"] == {}


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_a_row_behind_padding_answers_as_it_does_alone(name: str) -> None:
    model = _prepared(name, FIXED_HEADS)
    tokens, padding = _tokens(3, LENGTH), (70, 0, 230)  # the last row is short enough to be computed whole
    mask = torch.ones_like(tokens)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "use_cache": True}
    together = model(
        input_ids=tokens[:, :-1], **given | {"attention_mask": mask[:, :-1]}, position_ids=positions[:, :-1]
    )
    step = model(
        input_ids=tokens[:, -1:], past_key_values=together.past_key_values, position_ids=positions[:, -1:], **given
    )
    for row, count in enumerate(padding):
        alone = model(input_ids=tokens[row : row + 1, count:]).logits
        _close(together.logits[row : row + 1, count:], alone[:, :-1])
        _close(step.logits[row : row + 1], alone[:, -1:])
    assert together.logits.isfinite().all()
    assert model.counts.to_json()["dense_calls"]["short rows"] > 0


@pytest.mark.parametrize("name", [name for name in TEXT if name != "gpt2"])
@torch.no_grad()
def test_a_static_cache_is_served_as_a_dynamic_one(name: str) -> None:
    model = _prepared(name, FIXED_HEADS)
    tokens = _tokens(1, LENGTH)
    whole = model(input_ids=tokens).logits
    cache = StaticCache(config=model.config, max_cache_len=500)
    prompt = model(input_ids=tokens[:, :-2], past_key_values=cache, use_cache=True)
    steps = [model(input_ids=tokens[:, place : place + 1], past_key_values=cache, use_cache=True).logits
             for place in (LENGTH - 2, LENGTH - 1)]  # fmt: skip
    _close(torch.cat([prompt.logits, *steps], 1), whole)
    assert model.counts.to_json()["dense_calls"] == {}
    assert model.counts.to_json()["sparse_calls"]["decode"] > 0


@pytest.mark.parametrize("key_heads", [(0,), (0, 1)])
@torch.no_grad()
def test_any_choice_of_heads_is_kept_to(key_heads: tuple[int, ...]) -> None:
    model, truth = _pair("qwen3", key_heads=key_heads)
    tokens = _tokens(1, LENGTH)
    _close(model(input_ids=tokens).logits, truth(input_ids=tokens).logits)


@torch.no_grad()
def test_rows_below_the_bound_are_dense_to_the_bit() -> None:
    tokens = _tokens(1, LENGTH)
    plain = tiny.build("qwen3")(input_ids=tokens).logits
    for dense_below, equal in ((LENGTH + 1, True), (LENGTH, False)):
        model = _prepared("qwen3", FIXED_HEADS, dense_below=dense_below)
        assert torch.equal(model(input_ids=tokens).logits, plain) is equal
        assert bool(model.counts.to_json()["dense_calls"]) is equal


@torch.no_grad()
def test_an_unknown_mask_goes_to_the_dense_function_and_is_counted() -> None:
    tokens = _tokens(1, LENGTH)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    mask[..., 200:, 100] = False
    model = _prepared("llama", FIXED_HEADS)
    plain = tiny.build("llama")
    plain.set_attn_implementation("sdpa")
    assert torch.equal(
        model(input_ids=tokens, attention_mask=mask).logits, plain(input_ids=tokens, attention_mask=mask).logits
    )
    (reason,) = model.counts.to_json()["dense_calls"]
    assert "hides more" in reason


@torch.no_grad()
def test_attention_weights_are_refused_and_never_computed_in_silence() -> None:
    model = _prepared("qwen3", FIXED_HEADS)
    with pytest.raises(RefusedOnOptimized, match="attention weights"):
        model(input_ids=_tokens(1, LENGTH), output_attentions=True)


@torch.no_grad()
def test_a_copy_of_the_model_counts_for_itself() -> None:
    model = _prepared("llama", FIXED_HEADS)
    model(input_ids=_tokens(1, LENGTH))
    twin = copy.deepcopy(model)
    twin(input_ids=_tokens(1, LENGTH))
    calls = [one.counts.to_json()["sparse_calls"]["prefill"] for one in (model, twin)]
    assert calls == [3, 6]


def test_heads_side_by_side_are_a_view() -> None:
    tensor = torch.randn(1, 6, 2, 2)
    assert take_heads(tensor, [2, 3]).data_ptr() == tensor[:, 2].data_ptr()
    assert torch.equal(take_heads(tensor, [0, 2, 3, 5]), tensor[:, [0, 2, 3, 5]])
