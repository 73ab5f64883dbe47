"""Prompts: a pattern that leaves keys out is not held against dense logits, but all that it promises is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.arms import prefill
from benchmarks.arms.prefill import Pattern
from benchmarks.suites import SUITES

from benchmarks import real_models, results, run


def smoke(out: Path, *arms: str) -> dict[str, Any]:
    assert run.main([f"prefill-qwen3-4b-128k:{','.join(arms)}", "--smoke", "--out", str(out)]) == 0
    return results.read(out)["arms"]


def faulty(arm: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That system, whose logits go through a fault: fault(logits, tokens)."""
    own = prefill.ARMS[arm]

    def make(model: Any, room: Any) -> Any:
        inner = own.make(model, room)
        return lambda tokens, keep: fault(inner(tokens, keep), tokens.shape[1])

    given = {"label": own.label, "make": make, "exactness": own.exactness, "pattern": own.pattern}
    monkeypatch.setitem(prefill.ARMS, arm, prefill.PrefillArm(**given))


def test_a_pattern_tells_what_it_read_and_what_attention_lay_there(tmp_path: Path) -> None:
    arms = smoke(tmp_path / "out.json", "pio-sparse", "pio-adaptive")
    fixed = arms["pio-sparse"]["cases"]["640"]["facts"]
    assert fixed["sparse_calls"]["prefill"] == 2 * 2  # layers, calls of the long prompt
    assert fixed["dense_calls"] == {}
    assert 0 < fixed["density"] < 1
    assert 0 < fixed["coverage"] < 0.9
    assert list(arms["pio-sparse"]["check"]["error"]) == ["12, dense"]
    audited = arms["pio-adaptive"]["cases"]["640"]["facts"]
    assert audited["sparse_calls"] or audited["dense_calls"]
    assert audited["told by"] == "audits"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda logits, length: logits * float("nan"), "at 640 its logits are not numbers"),
        (lambda logits, length: torch.ones_like(logits), "at 640 its logits are all alike"),
        (lambda logits, length: logits.flip(-1) if length == 12 else logits, "at 12, densely, they lie"),
    ],
)
def test_a_pattern_over_a_wrong_model_is_found_out(
    fault: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty("pio-sparse", fault, monkeypatch)
    (arm,) = smoke(tmp_path / "out.json", "pio-sparse").values()
    assert arm["status"] == "wrong"
    assert said in arm["reason"]
    assert arm["cases"] == {}


def test_a_pattern_that_does_not_serve_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "SMOKE_DENSE_BELOW", 1000)
    (arm,) = smoke(tmp_path / "out.json", "pio-sparse").values()
    assert arm["status"] == "wrong"
    assert arm["reason"] == "sparse_attention served {} and left {'short rows': 4}"
    assert Pattern("x", always=False).why_wrong({}) == ["x counted no call"]
    assert Pattern("x", always=False).why_wrong({"dense_calls": {"attention spread wide": 2}}) == []
    assert Pattern("x", always=True).why_wrong({"sparse_calls": {"prefill": 2}, "dense_calls": {}}) == []


@pytest.mark.parametrize("fault", [lambda logits, _: logits.roll(1, -1), lambda logits, _: logits * float("nan")])
def test_a_dense_system_is_still_held_against_the_plain_model(
    fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty("plain", fault, monkeypatch)
    (arm,) = smoke(tmp_path / "out.json", "plain").values()
    assert arm["status"] == "wrong"
    assert "at 640 its logits lie" in arm["reason"]


@pytest.mark.slow
def test_the_real_settings_are_served_with_tokens_without_a_meaning() -> None:
    """A few narrow layers read as many tokens as a window of the pattern needs; the real suite takes the same words."""
    from benchmarks.arms.room import Room

    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    prompt = real_models.prompt(model, 12)
    prefill.ARMS["pio-sparse"].make(model, Room(prompt, SUITES["prefill-qwen3-4b-128k"].lengths[0]))
    import inference_pio

    (receipt,) = [
        one for one in inference_pio.get_optimization_manager().get_receipts(model) if one.name == "sparse_attention"
    ]
    assert (receipt.decision["sinks"], receipt.decision["window"]) == (128, 2048)
    assert {len(heads) for heads in receipt.decision["key_heads"].values()} == {2}
