"""A system that computes something else is found out, recorded with its figure, and not timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.arms import table
from benchmarks.arms.decoder import Decoder, GenerateDecoder
from benchmarks.arms.graph import GraphDecoder
from benchmarks.arms.room import Room
from torch import nn

from benchmarks import faithful, real_models, results, run

FAMILIES = sorted(real_models.RECIPES)


def one_position_off(model: nn.Module, room: Room) -> Decoder:
    decoder = GraphDecoder(model, room.tokens)
    decoder.capture(room.prompt)
    step = decoder.function
    decoder.function = lambda token, position: step(token, position + 1)
    return decoder


def sees_nothing_before(model: nn.Module, room: Room) -> Decoder:
    decoder = GraphDecoder(model, room.tokens)
    decoder.capture(room.prompt)
    decoder.places = torch.where(decoder.places < 12, decoder.places + 10_000, decoder.places)
    return decoder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_right_system_passes_and_one_position_off_does_not(family: str) -> None:
    model = real_models.build(family, "cpu", smoke=True)
    prompt = real_models.prompt(model, 24)
    wanted = faithful.reference(model, prompt, 8, "rounding")
    right = GraphDecoder(model, 40)
    right.capture(prompt)
    assert faithful.judge(right, wanted).right
    verdict = faithful.judge(one_position_off(model, Room(prompt, 40)), wanted)
    assert not verdict.right
    assert verdict.error > verdict.tolerance
    assert "allowed" in verdict.reason


@pytest.mark.parametrize("fault", [one_position_off, sees_nothing_before])
def test_a_wrong_system_is_recorded_and_not_timed(fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.ARMS, "graph-eager", table.Arm("faulty", fault))
    run.main(["decode-qwen3-4b", "--smoke", "--out", str(tmp_path / "out.json"), "--arms", "graph-eager,plain"])
    arms = results.read(tmp_path / "out.json")["arms"]
    assert arms["graph-eager"]["status"] == "wrong"
    assert arms["graph-eager"]["check"]["error"] > arms["graph-eager"]["check"]["tolerance"]
    assert arms["graph-eager"]["cases"] == {}
    assert arms["plain"]["status"] == "ok"


def test_int8_may_lie_farther_than_rounding_and_noise_may_not() -> None:
    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    prompt = real_models.prompt(model, 24)
    small, large = (faithful.reference(model, prompt, 8, exactness) for exactness in ("rounding", "int8"))
    assert small.noise_error < large.noise_error
    unrelated = torch.randn(large.logits.shape, generator=torch.Generator().manual_seed(0))
    assert not faithful.verdict(unrelated, unrelated.argmax(-1), large).right
    assert not faithful.verdict(large.logits * float("nan"), large.tokens, large).right


def test_forced_tokens_give_the_logits_along_them() -> None:
    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    prompt, given = real_models.prompt(model, 16), torch.tensor([5, 9, 11, 3])
    along = GenerateDecoder(model).decode(prompt, 4, forced=given, logits=True)
    straight = faithful.last_logits(model, torch.cat([prompt, given[None, :-1]], 1), 4)
    assert along.tokens.tolist() == given.tolist()
    assert along.logits is not None
    assert faithful.relative_error(along.logits, straight) < 0.05


def test_a_model_that_proves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        faithful.check_sane(torch.full((2, 8), float("nan")))
    with pytest.raises(ValueError, match="nearly uniform"):
        faithful.check_sane(torch.full((2, 8), 0.5))


def test_a_call_with_room_for_more_stops_where_it_was_asked() -> None:
    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    prompt = real_models.prompt(model, 16)
    short = GenerateDecoder(model, 40, cache_implementation="static").decode(prompt, 5)
    assert short.tokens.tolist() == GenerateDecoder(model).decode(prompt, 5).tokens.tolist()
