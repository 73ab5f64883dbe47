"""Benchmark tasks of EleutherAI's lm-eval on an optimized model, through its own API. Optional: the extra `eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from inference_pio.errors import InvalidSetting, MissingExtra
from inference_pio.measure.interval import Interval
from inference_pio.measure.proportion import Z_95
from inference_pio.measure.target import check_measurable


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task; the interval is that of lm-eval's standard error, None where it gives none."""

    task: str
    metric: str
    value: float
    interval: Interval | None


def evaluate_tasks(
    model: nn.Module, tokenizer: Any, tasks: Sequence[str | Mapping[str, Any]], *, limit: int | None = None,
    batch_size: int = 1, seed: int = 0,
) -> list[TaskScore]:  # fmt: skip
    """Every metric of every task, by the names lm-eval knows or as its task configurations; the model is only read.

    `limit` takes that many documents of each. Most tasks fetch their data from the hub. Raises MissingExtra without
    lm-eval, InvalidSetting for a task that it does not know.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra("lm-eval", "eval", "evaluating benchmark tasks") from error
    check_measurable(model)
    named = [task for task in tasks if isinstance(task, str)]
    manager = TaskManager()
    if unknown := [task for task in named if task not in manager.all_tasks]:
        raise InvalidSetting(f"lm-eval knows no task {', '.join(unknown)}: `lm-eval ls tasks` lists those it knows.")
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=[dict(task) if isinstance(task, Mapping) else task for task in tasks], task_manager=manager, limit=limit,
        random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        bootstrap_iters=1000,
    )  # fmt: skip
    return [score for task, figures in found["results"].items() for score in _scores(task, figures)]


def _scores(task: str, figures: Mapping[str, Any]) -> list[TaskScore]:
    """lm-eval writes `acc,none` for a metric under a filter and `acc_stderr,none` for its error."""
    found = []
    for key, value in figures.items():
        metric, _, filtered = key.partition(",")
        if not isinstance(value, float | int) or metric.endswith("_stderr") or not filtered:
            continue
        error = figures.get(f"{metric}_stderr,{filtered}")
        reach = Z_95 * error if isinstance(error, float | int) else None
        interval = (value - reach, value + reach) if reach is not None else None
        found.append(
            TaskScore(task, metric if filtered == "none" else f"{metric} ({filtered})", float(value), interval)
        )
    return found
