"""Heads that follow a fixed pattern read the same pages in recorded steps as in the library's loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.fixed_heads import FixedHeads
from inference_pio.decoding.page_lists import ENGINE, PageLists, fixed_heads_of
from inference_pio.decoding.recordable import RecordableOperations
from inference_pio.decoding.takeover import engine_of
from inference_pio.kernels.fixed_pattern import FixedPattern
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.compute import kernel_fusion
from tests import tiny

CPU = torch.device("cpu")
SPARSE: dict[str, Any] = {"dense_below": 0, "window": 64, "sinks": 64, "min_coverage": 0.0}


def fused(monkeypatch: pytest.MonkeyPatch, name: str = "llama", fuse: bool = True) -> Any:
    """A model with a fixed pattern, and steps that never ask the host, as on a GPU."""
    monkeypatch.setattr(kernel_fusion, "choose_operations", lambda *given, **how: RecordableOperations())
    model, manager = tiny.build(name), ModularOptimizationManager()
    given = {"sparse_attention": SPARSE, "kernel_fusion": {"level": "graph", "exact": True}}
    names = ["sparse_attention", "kernel_fusion"] if fuse else ["sparse_attention"]
    manager.apply_optimizations(model, names, parameters={name: given[name] for name in names})
    return model, manager


def said(model: Any, rows: int = 2, padded: int = 0) -> torch.Tensor:
    tokens = torch.randint(1, 120, (rows, 300), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    mask[0, :padded] = 0
    how = {"max_new_tokens": 90, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    found = model.generate(tokens, attention_mask=mask, output_logits=True, **how)
    return torch.stack(found.logits)


def test_steps_follow_the_pattern_as_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours, manager), (theirs, _) = fused(monkeypatch), fused(monkeypatch, fuse=False)
    expected, engine = said(theirs), engine_of(ours)
    assert engine is not None
    before = engine.counts.calls  # the pattern's own calibration lets the model speak
    torch.testing.assert_close(said(ours), expected, rtol=1e-4, atol=1e-5)
    dense = tiny.build("llama")
    assert not torch.allclose(said(dense), expected, rtol=1e-4, atol=1e-5)
    assert (engine.counts.calls - before, engine.counts.left) == (1, {})
    counted = manager.get_optimization_status(ours)["optimizations"]["sparse_attention"]["counted"]
    assert counted["backends"][ENGINE] == 3 * 89
    assert counted["density"] < 0.9


@pytest.mark.slow
def test_padded_rows_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours, _), (theirs, _) = fused(monkeypatch), fused(monkeypatch, fuse=False)
    assert torch.equal(said(ours, padded=70), said(theirs, padded=70))
    engine = engine_of(ours)
    assert engine is not None
    (reason,) = engine.counts.left
    assert "rows are padded and heads follow a fixed pattern" in reason


def test_lists_say_what_each_head_reads_and_are_sent_when_they_change() -> None:
    model, _ = tiny.build("llama"), None
    module: Any = model.model.layers[0].self_attn  # type: ignore[union-attr, index]
    pattern = FixedPattern(sinks=64, window=64)
    heads = FixedHeads(pattern, (1,), 0)
    assert fixed_heads_of(module) is None
    vars(module)["inference_pio_fixed_pattern"] = heads
    module.config = type(module.config)(**{**module.config.to_dict()})
    module.config._attn_implementation_internal = "inference_pio_fixed_pattern_over_sdpa"
    lists = PageLists([module], 1, 2, 1024, 2, CPU)
    lists.refresh(700, 2)
    listed = lists.of(module, 0)
    assert listed is not None
    assert listed.counts.tolist() == [[11, len(pattern.pages(701))]]
    assert listed.kept(16)[0, 1].nonzero().flatten().tolist() == list(pattern.pages(701))
    listed.counts.zero_()
    lists.refresh(701, 2)
    assert listed.counts.tolist() == [[0, 0]]  # nothing changed, nothing was sent
    lists.refresh(704, 2)
    assert listed.counts.tolist() == [[12, len(pattern.pages(705))]]
