from __future__ import annotations

import json

from inference_pio.contract.verdict import StepCost, Verdict

COST = StepCost("pruning", False, 0.1, 0.15, 2_000_000)


def test_a_verdict_is_plain_data_and_keeps_what_was_asked_to_itself() -> None:
    verdict = Verdict(
        {"max_kl": 0.05}, "some text", 2048, 513, 0.01, 1.02, 0.11, 1.2, (COST,), {"pruning": "too much"}, asked="x"
    )
    data = json.loads(json.dumps(verdict.to_json()))
    assert data["costs"][0]["kl_bought"] == 0.1
    assert data["taken_back"] == {"pruning": "too much"}
    assert "asked" not in data


def test_a_cost_is_told_in_words() -> None:
    told = "pruning costs KL 0.1 nats/token and +0.15 of the perplexity ratio"
    assert str(COST) == f"{told}, 2.0 MB of weights saved"
    assert str(StepCost("pruning", False, 0.1, 0.15, 0)) == told
