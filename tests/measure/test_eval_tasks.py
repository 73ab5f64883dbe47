from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from inference_pio.errors import InvalidSetting, MissingExtra
from inference_pio.measure.eval_tasks import TaskScore, _scores, evaluate_tasks
from tests import tiny


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"inference-pio\[eval\]"):
        evaluate_tasks(tiny.build("llama"), None, ["anything"])


def test_metrics_are_told_from_their_errors_and_from_what_is_no_number() -> None:
    figures = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.25, "f1_stderr,strict": "N/A"}
    one, other = _scores("t", figures)
    assert (one.metric, one.value, one.interval) == ("acc", 0.5, pytest.approx((0.304, 0.696), rel=1e-4))
    assert other == TaskScore("t", "f1 (strict)", 0.25, None)


@pytest.mark.filterwarnings("ignore")  # other people's, from a dozen packages
def test_a_task_is_scored_on_an_optimized_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed: it brings 90 packages")
    import inference_pio
    from tests.quality import reference_models

    row = {"q": "def f(self): return self", "choices": [".x", " zebra"], "answer": 0}
    (tmp_path / "docs.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    task = {
        "task": "local_choice", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}}, "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    model = inference_pio.optimize(reference_models.load("qwen3"), "balanced")
    found = evaluate_tasks(model, reference_models.tokenizer(), [task], limit=3)
    assert [(score.task, score.metric, score.value) for score in found] == [("local_choice", "acc", 1.0)]
    with pytest.raises(InvalidSetting, match="no task no_such_task"):
        evaluate_tasks(model, reference_models.tokenizer(), ["no_such_task"])
