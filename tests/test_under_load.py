"""Optimizations come and go while other threads generate: each answer is that of a model as it stood at some time."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable

import pytest
import torch

from inference_pio.errors import ModelBusy
from tests import tiny
from tests.sweep import Case

TOGGLED = ["flash_attention", "kernel_fusion", "tensor_compression"]
SEEDS = range(3)
SOON_S = 120.0
"""By then all threads have ended, or one waits for ever."""


def answers_of(case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [asked(case, seed) for seed in SEEDS]


def asked(case: Case, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that a model writes, and its logits, for a prompt."""
    said = tiny.generate(case.model, case.name, seed=seed)
    with torch.no_grad():
        return said, case.model(**tiny.inputs(case.name, case.model, seed)).logits


def allowed(name: str) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """What each set of optimizations answers, where nothing else goes on."""
    found = []
    for count in range(len(TOGGLED) + 1):
        for names in itertools.combinations(TOGGLED, count):
            case = Case(name)
            if names:
                case.manager.apply_optimizations(case.model, list(names))
            found.append(answers_of(case))
    return found


def toggle(case: Case, chance: random.Random) -> str:
    """One optimization comes, or goes, or a busy model is left as it is."""
    name, patience_s = chance.choice(TOGGLED), chance.choice([0.0, 0.002, 60.0])
    edit: Callable[..., object] = chance.choice([case.manager.apply_optimizations, case.manager.remove_optimizations])
    try:
        edit(case.model, [name], timeout_s=patience_s)
    except ModelBusy:
        return "busy"
    return "edited"


@pytest.mark.parametrize(
    ("name", "requests"),
    [
        ("llama", 12),
        pytest.param("llama", 200, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", 40, marks=pytest.mark.slow),
        pytest.param("glm4_moe_lite", 40, marks=pytest.mark.slow),
    ],
)
def test_eight_threads_ask_while_they_toggle(name: str, requests: int) -> None:
    case, right = Case(name), allowed(name)
    wrong: list[object] = []
    edits = dict.fromkeys(("busy", "edited"), 0)
    begun = threading.Barrier(8)

    def run(number: int) -> None:
        chance = random.Random(number)
        try:
            begun.wait()
            for _ in range(requests):
                if chance.random() < 0.25:
                    edits[toggle(case, chance)] += 1
                seed = chance.choice(SEEDS)
                said, logits = tiny.generate(case.model, name, seed=seed), None
                if not any(torch.equal(said, each[seed][0]) for each in right):
                    wrong.append((number, said))
                with torch.no_grad():
                    logits = case.model(**tiny.inputs(name, case.model, seed)).logits
                if not any(torch.equal(logits, each[seed][1]) for each in right):
                    wrong.append((number, "logits"))
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S * max(1, requests / 20))
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert edits["edited"] > requests / 4
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
