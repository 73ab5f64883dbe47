from __future__ import annotations

from inference_pio.measure.html.view import View
from inference_pio.measure.report import Report
from tests.measure.html.sample import profiles_of_record, recorded, with_steps


def test_a_report_has_all_its_sections() -> None:
    view = View.of(recorded())
    assert (view.model, view.subtitle, view.device) == (
        "SmolLM2-135M-Instruct", "profile balanced", "AMD EPYC, 2 threads"
    )  # fmt: skip
    assert (len(view.cards), len(view.ratios), len(view.speeds), len(view.memory), len(view.quality)) == (4, 1, 3, 2, 3)
    assert view.summary is None
    assert dict(view.machine)["torch"] == "2.13.0+cpu"
    assert "triton" not in dict(view.machine)
    assert "5 rounds, timed in turn, round by round." in view.captions["speeds"]
    assert "pydoc_data.topics" in view.captions["quality"]
    assert len(view.notes) == 4


def test_measured_steps_have_a_section() -> None:
    assert [chart.title for chart in View.of(with_steps()).steps] == [
        "Decode", "Prefill", "Memory of the model", "Perplexity"
    ]  # fmt: skip
    assert View.of(recorded()).steps == []


def test_several_profiles_have_a_table_and_a_run_each() -> None:
    view = View.of(profiles_of_record())
    assert view.summary is not None
    assert [run.name for run in view.runs] == ["balanced", "performance", "lossless"]
    assert [chart.title for chart in view.ratios] == ["balanced", "performance"]
    assert view.cards == ()


def test_a_report_without_measurements_says_so_and_shows_its_plan() -> None:
    view = View.of(Report("tiny", plan={"steps": []}).to_json())
    assert "were not measured" in view.lead
    assert "is planned" in view.lead
    assert not any((view.cards, view.ratios, view.speeds, view.memory, view.quality, view.machine, view.device))


def test_missed_targets_are_the_first_notes() -> None:
    view = View.of(recorded(targets_missed=[{"said": "memory_efficiency: 70% was wanted"}]))
    assert view.notes[0] == "Target missed: memory_efficiency: 70% was wanted"


def test_a_gpu_is_named_instead_of_the_cpu() -> None:
    machine = {**recorded()["machine"], "device": "NVIDIA H100"}
    assert View.of(recorded(machine=machine)).device == "NVIDIA H100"


def test_what_is_counted_layer_by_layer_is_drawn() -> None:
    counted = {"spikes_by_layer": {"a.q": 0.5, "a.k": None, "a.v": 2.0}, "spikes": 7}
    data = {**recorded(), "status": {"applied_optimizations": [{"name": "snn_conversion", "counted": counted}]}}
    chart = View.of(data).steps[-1]
    assert chart.title == "snn_conversion: spikes"
    assert [(mark.name, mark.text, mark.width) for mark in chart.marks] == [
        ("a.q", "0.50", 25.0),
        ("a.v", "2.00", 100.0),
    ]
