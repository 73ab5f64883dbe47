from __future__ import annotations

import pytest

from inference_pio.measure.html.steps import SHOWN_PATHS, paths_of, run_of, weights_by_step
from tests.measure.html.sample import recorded

PLANNED = {
    "name": "flash_attention", "action": "apply", "type": "attention", "stage": "computation", "source": "profile 'x'",
    "parameters": {"backend": "auto"}, "sites": [{"path": "a", "role": "attention"}, {"path": ""}], "site_count": 2,
    "skipped": [{"reason": "tied", "count": 1, "paths": ["b"]}], "decision": {"plain": "fused"}, "backend": "fused",
    "weight_bytes_after": 1000, "notes": ["a note"],
}  # fmt: skip


def test_a_step_that_was_done_tells_what_its_receipt_says() -> None:
    data = recorded()
    first, second = run_of("", data["plan"], data["receipts"]).steps
    assert (first.name, first.done, first.places.count) == ("tensor_compression", True, 210)
    facts = dict(first.facts)
    assert facts["weights"] == "269.0 MB → 163.2 MB"
    assert facts["parked for undo"] == "212.3 MB: the checkpoint (model.safetensors)"
    assert facts["can be taken back"] == "yes, exactly"
    assert dict(second.facts)["weights"] == "not changed"
    assert [skip.heading for skip in first.skips][1] == "embeddings are kept: a lookup gains nothing from int8"
    assert first.decision == (("format", "int8"), ("scale", "row"))


def test_what_a_step_has_counted_stands_among_its_facts() -> None:
    receipts = [{"name": "x", "counted": {"calls": 3, "why": {"short": 2}}}]
    facts = dict(run_of("", None, receipts).steps[0].facts)
    assert (facts["counted: calls"], facts["counted: why"]) == ("3", '{"short": 2}')


def test_a_step_that_is_only_planned_tells_the_forecast() -> None:
    (step,) = run_of("", {"steps": [PLANNED]}, []).steps
    assert not step.done
    assert step.badges == ("attention", "computation", "profile 'x'")
    assert dict(step.facts) == {"action": "apply", "backend": "fused", "weights after it": "1.0 kB (predicted)"}
    assert step.places.shown == ("a", "the whole model")
    assert (step.skips[0].heading, step.skips[0].shown, step.notes) == ("tied", ("b",), ("a note",))


def test_what_is_left_out_and_taken_back_is_told_with_its_reason() -> None:
    plan = {"skipped": [{"name": "x", "reason": "no gpu"}], "removed": ["y"], "notes": ["z"]}
    run = run_of("p", plan, [], "why")
    assert (run.left, run.removed, run.notes, run.failed) == ((("x", "no gpu"),), ("y",), ("z",), "why")
    assert run_of("p", None, []).steps == ()


def test_weights_fall_step_by_step_from_before_to_after() -> None:
    chart = weights_by_step(recorded()["receipts"])
    assert chart is not None
    assert [(mark.name, mark.text) for mark in chart.marks] == [
        ("before", "269.0 MB"), ("tensor_compression", "−105.9 MB"), ("flash_attention", "no change"),
        ("after", "163.2 MB"),
    ]  # fmt: skip
    before, step, stays, after = chart.marks
    assert (step.start, step.at, step.series) == (after.at, before.at, "gain")
    assert (stays.at, stays.width) == (after.at, 0.0)
    assert weights_by_step([]) is None


def test_weights_that_grow_are_a_loss() -> None:
    chart = weights_by_step([{"name": "x", "weight_bytes_before": 1000, "weight_bytes_after": 1500}])
    assert chart is not None
    assert (chart.marks[1].text, chart.marks[1].series) == ("+500 B", "loss")


def test_of_many_paths_the_first_are_shown_and_the_rest_counted() -> None:
    found = paths_of("places", [f"layer.{n}" for n in range(1000)], 1000)
    assert (len(found.shown), found.more) == (SHOWN_PATHS, 1000 - SHOWN_PATHS)
    assert paths_of("places", ["a", "..."], 30).more == 29


@pytest.mark.parametrize("count", ["inf", "nan", None, 10**400])
def test_a_count_that_is_none_is_taken_from_what_is_shown(count: object) -> None:
    assert paths_of("places", ["a", "b"], count).count == 2
