"""The first program to run on a GPU: its checks pass on a CPU, find faults, and tell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.first_run import MODELS, MORE_ROWS, ROWS, Checks, main, table

from benchmarks import faithful, real_models
from inference_pio.decoding import host
from inference_pio.decoding.slots import Slots

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [*MODELS[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])])
def test_every_check_is_right_on_tiny_models(name: str) -> None:
    rows = Checks(name, CPU, tiny=True).run()
    assert [row["check"] for row in rows if not row["right"]] == []
    assert len(rows) == 10
    assert all(row["said"] for row in rows)


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_step_is_found_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Slots.begin

    def late(self: Slots, tokens: Any, positions: Any, **how: Any) -> None:
        kept(self, tokens, positions + (how["length"] > 8), **how)  # the check at apply holds 8 tokens

    monkeypatch.setattr(Slots, "begin", late)
    rows = Checks("qwen3-4b", CPU, tiny=True).run()
    right = {row["check"]: row["right"] for row in rows}
    assert not right["tokens and logits"]
    assert not right["padded rows"]
    assert right["undo"]
    assert "FAILED" in table(rows)


def test_a_kernel_that_breaks_is_told_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **how: Any) -> Any:
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(host, "rotate_and_store_at", broken)
    rows = Checks("qwen3-4b", CPU, tiny=True).run()
    assert [row["check"] for row in rows] == ["library", "apply"]
    assert "an illegal address" in rows[-1]["said"]


@pytest.mark.slow
def test_processes_side_by_side_tell_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    assert main(["qwen3-4b", "--tiny", "--json", str(out)]) == 0
    assert "10 of 10 right" in capsys.readouterr().out
    assert len(json.loads(out.read_text())) == 10
    assert main(["qwen3-4b", "--tiny", "--seconds", "0.1"]) == 1
    assert "it had not ended after 0 s" in capsys.readouterr().out


def test_a_router_that_noise_turns_at_one_place_of_a_hundred_is_allowed_for() -> None:
    """By hand: noise of one part in a hundred, and one place of 96 whose logits are others."""
    chance = torch.Generator().manual_seed(0)
    clean = torch.randn(8, MORE_ROWS, 500, generator=chance)
    moved = clean + 0.01 * torch.randn(clean.shape, generator=chance)
    moved[3, 4] += 0.3 * torch.randn(500, generator=chance)
    checks = Checks("qwen3-4b", CPU, tiny=True)
    checks.most, checks.along, checks.batches = 96, {MORE_ROWS: clean}, {MORE_ROWS: ()}  # type: ignore[dict-item]
    checks.model = torch.nn.Linear(1, 1)
    checks._logits = lambda *batch: moved  # type: ignore[method-assign]
    noise = checks._noise()
    assert noise.places == 96
    assert noise.errors[MORE_ROWS] == pytest.approx((0.01**2 + 0.3**2 / 96) ** 0.5, rel=0.1)
    assert noise.errors[ROWS] == pytest.approx((0.01**2 + 0.3**2 / 24) ** 0.5, rel=0.1)
    assert noise.gap_allowed > faithful.GAP_SIGMAS * faithful.LEAST
    checks._logits = lambda *batch: clean + 0.003 * (moved - clean)  # type: ignore[method-assign]
    assert checks._noise().allowed(ROWS) == faithful.LEAST  # no slack where nothing turns


def test_each_draw_of_noise_is_another() -> None:
    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    prompt = real_models.prompt(model, 12)
    said = []
    for seed in (0, 0, 1):
        with faithful.noisy(model, 0.01, seed):
            said.append(faithful.last_logits(model, prompt, 4))
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])
