"""Two buffers by turns: the next layer is on its way early, nothing is overwritten that is still read or sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.cache import HostCache
from inference_pio.cache.host_layer import HostLayer
from inference_pio.cache.staging import Staging
from tests import tiny
from tests.cache.late_lane import put_late_lanes
from tests.cache.walks import prompt, walk


def layers(count: int) -> list[HostLayer]:
    staging = Staging()
    return [HostLayer(staging, number) for number in range(count)]


def call(these: list[HostLayer], tokens: int, seed: int) -> list[torch.Tensor]:
    """One call of every layer: what each hands out, read at once as an attention reads it."""
    found = []
    for layer in these:
        states = torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(100 * seed + layer.number))
        keys, values = layer.update(states, -states)
        assert torch.equal(keys, -values)
        found.append(keys.clone())
    return found


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_layer_gets_its_own_tokens(count: int, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if late:
        put_late_lanes(monkeypatch)
    these, wanted = layers(count), [torch.empty(2, 3, 0, 4)] * count
    for step, tokens in enumerate([200, 1, 1, 90, 1, 300, 1, 1]):
        found = call(these, tokens, step)
        for number, keys in enumerate(found):
            states = torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(100 * step + number))
            wanted[number] = torch.cat([wanted[number], states], 2)
            assert torch.equal(keys, wanted[number]), (step, number)


def test_behind_the_first_call_each_layer_comes_early_and_the_first_wraps_around() -> None:
    these = layers(3)
    staging = these[0].staging
    call(these, 100, 0)
    assert (staging.early, staging.brought) == (0, 1 * 100 * 24 * 2 * 4)  # the first layer's, for the next call
    for step in range(1, 4):
        call(these, 1, step)
        assert staging.early == 3 * step
    assert staging.nbytes == 2 * 256 * 24 * 2 * 4


def test_the_stand_in_would_tell_a_wait_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = put_late_lanes(monkeypatch)
    good, bad = layers(3), layers(3)
    for these in (good, bad):
        call(these, 50, 0)
    wanted = call(good, 1, 1)
    monkeypatch.setattr(lanes[-1], "wait", lambda mark: None)
    assert not all(torch.equal(one, other) for one, other in zip(call(bad, 1, 1), wanted, strict=True))


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "glm4_moe_lite"])
def test_a_model_walks_through_late_lanes_as_through_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.build(name)
    given = prompt(2, 300, (0, 31))
    wanted = walk(model, HostCache.of(model), given, (40, 100, -7))
    lanes = put_late_lanes(monkeypatch)
    assert torch.equal(walk(model, HostCache.of(model), given, (40, 100, -7)), wanted)
    assert len(lanes) == 1


def test_in_a_steady_state_nobody_waits_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = put_late_lanes(monkeypatch)
    these = layers(3)
    call(these, 200, 0)
    call(these, 1, 1)
    lanes[0].log.clear()
    for step in range(2, 20):
        call(these, 1, step)
    assert "drain" not in lanes[0].log
    assert lanes[0].log == ["begin", "send", "send"] * 3 * 18
