"""Two factors lose little where little is asked of them, ranks go where they are needed, and no model is edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.side_by_side import SideBySide, side_by_side
from inference_pio.anatomy.walk import linears
from inference_pio.calibration import decomposed, output_pass
from inference_pio.calibration.decomposed import (
    FORETOLD,
    MEASURED,
    REFITTED,
    UNIFORM,
    Decomposed,
    decompose,
    decompose_weights,
)
from inference_pio.calibration.factors import layers_of
from inference_pio.calibration.held_out import parted
from inference_pio.calibration.ranks import WHOLE, factor_numbers, rank_at
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.test_narrowed import text

ROLES = ("attention", "mlp")


def groups_of(model: Any) -> list[SideBySide]:
    paths = [path for path, _, role in linears(model) if role.startswith(ROLES) and not path.endswith("kv_b_proj")]
    return side_by_side(model, paths)


def run(model: Any, ratio: float = 0.3, **how: Any) -> Decomposed:
    groups, pivots = groups_of(model), how.get("pivots", True)
    ranks = {one.name: rank_at(sum(one.outputs), one.inputs, ratio, 4, pivots) or 4 for one in groups}
    source = how.pop("source", None) or text()
    asked = {"ratio": ratio, "allocations": (FORETOLD, MEASURED), "align": dict.fromkeys(ranks, 4), **how}
    return decompose(model, groups, ranks, source, **asked)


@pytest.mark.parametrize("pivots", [True, False])
@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_layers_are_replaced_in_thought_alone_and_lose_less_than_by_their_weights(name: str, pivots: bool) -> None:
    model = tiny.build(name)
    before = fingerprint(model)
    found = run(model, pivots=pivots)
    assert before.differences(fingerprint(model)) == []
    assert found.outputs is None
    assert set(found.divergences) == {UNIFORM, FORETOLD, MEASURED}
    assert found.taken.divergence == min(found.divergences.values())
    groups = groups_of(model)
    plain = decompose_weights(model, groups, found.ranks | {k: v or 4 for k, v in found.ranks.items()}, pivots=pivots)
    assert set(plain.taken.factors) == {one.name for one in groups}


def test_ranks_go_where_they_are_needed_and_keep_to_the_budget() -> None:
    model = tiny.build("llama")
    groups = {one.name: one for one in groups_of(model)}
    thin = "model.layers.0.mlp.gate_proj"
    with torch.no_grad():
        for path in groups[thin].paths:
            weight = model.get_submodule(path).weight
            weight.copy_(torch.outer(weight[:, 0], weight[0]))
    found = run(model)
    assert found.allocation != UNIFORM
    assert found.divergences[found.allocation] < found.divergences[UNIFORM]
    assert found.ranks[thin] == min(rank for rank in found.ranks.values() if rank)
    numbers = {
        name: one.numbers
        if found.ranks[name] == WHOLE
        else factor_numbers(sum(one.outputs), one.inputs, found.ranks[name], True)
        for name, one in groups.items()
    }
    assert sum(numbers.values()) <= 0.7 * sum(one.numbers for one in groups.values())


def test_where_the_budget_is_small_spectra_are_taken_twice_and_say_the_same() -> None:
    model = tiny.build("qwen3")
    at_once, bit_by_bit = run(model), run(model, budget_bytes=40_000)
    assert at_once.ranks == bit_by_bit.ranks
    for name, one in at_once.taken.factors.items():
        torch.testing.assert_close(one.out_of, bit_by_bit.taken.factors[name].out_of, rtol=1e-3, atol=1e-4)


def test_without_gradients_losses_are_measured_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise InvalidSetting("Model cannot be differentiated: no gradients here")

    monkeypatch.setattr(output_pass, "collect_outputs", fail)
    found = run(tiny.build("llama"))
    assert "no gradients here" in (found.to_json()["outputs_not_weighed"] or "")
    assert set(found.divergences) == {UNIFORM, FORETOLD, MEASURED}


def test_refitted_factors_are_kept_where_held_out_text_bears_them_out() -> None:
    model, source = tiny.build("llama"), text(64)
    before = fingerprint(model)
    found = run(model, 0.6, source=source, allocations=(), refits=True)
    assert before.differences(fingerprint(model)) == []
    assert found.divergences[REFITTED] < found.divergences[UNIFORM]
    assert found.taken.divergence == found.divergences[REFITTED]
    assert found.allocation == UNIFORM


def test_factors_hold_the_biases_that_were_there() -> None:
    model = tiny.build("gpt2")
    found = run(model)
    made = layers_of(model, groups_of(model), found.taken.factors)
    assert made
    for path, layer in made.items():
        assert layer.out_of.bias is model.get_submodule(path).bias
    with stood_in(model, made), torch.no_grad():
        assert model(input_ids=torch.arange(3, 40)[None]).logits.isfinite().all()


def test_a_text_that_is_too_short_is_refused_with_what_is_missing() -> None:
    with pytest.raises(InvalidSetting, match="100 inputs: give 24 tokens more at least"):
        run(tiny.build("llama"), source=text(2, 1))


def test_inputs_that_are_no_numbers_are_refused_with_the_layer() -> None:
    model, source = tiny.build("llama"), text(12)
    learned, judged = parted(source)
    only = set(learned.batches[0]["input_ids"].flatten().tolist())
    only -= {token for batch in judged.batches for token in batch["input_ids"].flatten().tolist()}
    with torch.no_grad():
        model.model.embed_tokens.weight[only.pop()] = float("nan")
    before = fingerprint(model)
    with pytest.raises(InvalidModel, match=r"self_attn\.q_proj is given NaN or infinity"):
        decompose(model, groups_of(model), {one.name: 16 for one in groups_of(model)}, source)
    assert before.differences(fingerprint(model)) == []


def test_a_candidate_that_gives_no_numbers_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([float("nan"), 0.5])
    monkeypatch.setattr(decomposed.HeldOut, "divergence", lambda *_: next(answers))
    found = run(tiny.build("llama"), allocations=(decomposed.FORETOLD,))
    assert found.allocation == decomposed.FORETOLD
    assert found.divergences == {"uniform": float("inf"), "foretold": 0.5}
