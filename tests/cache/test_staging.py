"""Buffers by turns: the next layers are on their way early, nothing is overwritten that is still read or sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.cache import HostCache
from inference_pio.cache.host_layer import HostLayer
from inference_pio.cache.staging import AHEAD, Staging
from inference_pio.contract.spread import spread
from tests import tiny
from tests.cache.late_lane import SlowLane, put_lanes, put_late_lanes
from tests.cache.walks import prompt, walk


def layers(count: int, ahead: int = AHEAD) -> list[HostLayer]:
    staging = Staging(ahead)
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
@pytest.mark.parametrize("ahead", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_layer_gets_its_own_tokens(count: int, ahead: int, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if late:
        put_late_lanes(monkeypatch)
    these, wanted = layers(count, ahead), [torch.empty(2, 3, 0, 4)] * count
    for step, tokens in enumerate([200, 1, 1, 90, 1, 300, 1, 1]):
        found = call(these, tokens, step)
        for number, keys in enumerate(found):
            states = torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(100 * step + number))
            wanted[number] = torch.cat([wanted[number], states], 2)
            assert torch.equal(keys, wanted[number]), (step, number)


@pytest.mark.parametrize("ahead", [1, 2, 3, 9])
def test_behind_the_first_call_each_layer_comes_early_once_and_the_first_ones_wrap_around(ahead: int) -> None:
    these, a_token = layers(4, ahead), 24 * 2 * 4
    staging, coming = these[0].staging, min(ahead, 4)
    call(these, 100, 0)
    assert (staging.early, staging.brought) == (0, coming * 100 * a_token)  # for the next call
    for step in range(1, 4):
        before = staging.brought
        call(these, 1, step)
        assert staging.early == 4 * step
        assert staging.brought - before == ((4 - coming) * (99 + step) + coming * (100 + step)) * a_token
    assert staging.nbytes == (coming + 1) * 256 * a_token


@pytest.mark.parametrize("ahead", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_layers_that_lost_tokens_while_they_came_are_right(count: int, ahead: int) -> None:
    these = layers(count, ahead)
    wanted = call(these, 50, 0)
    for step, (lost, tokens) in enumerate(
        [*[(0, 1)] * 2, (2, 1), *[(0, 1)] * 3, (3, 9), (1, 1), *[(0, 1)] * 3], start=1
    ):
        for layer in these:
            layer.crop(-lost)
        for number, keys in enumerate(call(these, tokens, step)):
            kept = wanted[number].shape[2] - lost
            states = torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(100 * step + number))
            wanted[number] = torch.cat([wanted[number][:, :, :kept], states], 2)
            assert torch.equal(keys, wanted[number]), (step, number)


def test_what_comes_in_vain_gives_way_before_what_is_wanted() -> None:
    these = layers(4, 3)
    staging = these[0].staging
    call(these, 50, 0)
    these[2].select(torch.tensor([0, 1]))  # what was brought of it is of another turn
    call(these, 1, 1)
    assert staging.early == 4


def test_the_stand_in_would_tell_a_wait_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = put_late_lanes(monkeypatch)
    good, bad = layers(3), layers(3)
    for these in (good, bad):
        call(these, 50, 0)
    wanted = call(good, 1, 1)
    monkeypatch.setattr(lanes[-1], "wait", lambda mark: None)
    with pytest.raises(AssertionError):
        assert all(torch.equal(one, other) for one, other in zip(call(bad, 1, 1), wanted, strict=True))


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


LAYERS, TOKENS = 36, 32768
LAYER_MS, COPY_MS, TURN_MS = 0.8, 2.44, 2.0
"""Of Qwen3-4B at 32K on an H100: a layer computed as the library calls it, its 134 MB over a link of 55 GB/s, and what
lies between the last layer of a token and the first of the next: head, choice, a wait of the host, embedding.
"""


def seconds_of_tokens(monkeypatch: pytest.MonkeyPatch, hosted: tuple[int, ...], ahead: int) -> tuple[float, float, int]:
    """Milliseconds of a token in a steady state, the share of them in which the link is busy, bytes over it."""
    (made := put_lanes(monkeypatch, SlowLane)).clear()
    these = dict(zip(hosted, layers(len(hosted), ahead), strict=True))
    few = TOKENS // 256  # a token of it stands for so many
    SlowLane.rate = 2 * few * 24 * 4 / COPY_MS
    call(list(these.values()), few, 0)
    (lane,) = made
    rounds, start = 4, (0.0, 0.0, 0)
    for token in range(1, rounds + 2):
        if token == 2:
            start = lane.computed, lane.busy, lane.nbytes
        for number in range(LAYERS):
            if layer := these.get(number):
                layer.update(*(torch.zeros(2, 3, 1, 4),) * 2)
                layer.crop(-1)  # so that all tokens take the same
            lane.compute(LAYER_MS)
        lane.compute(TURN_MS)
    took = lane.computed - start[0]
    return took / rounds, (lane.busy - start[1]) / took, (lane.nbytes - start[2]) // rounds


def test_the_link_rests_neither_while_layers_compute_that_stay_nor_between_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_layer, appended = 2 * TOKENS // 256 * 24 * 4, 2 * 24 * 4
    even = spread(24, LAYERS)
    took, busy, nbytes = seconds_of_tokens(monkeypatch, even, AHEAD)
    assert nbytes == 24 * (a_layer + appended), "nothing but the layers that are on the host goes over the link"
    assert busy > 0.995
    assert took < 1.01 * 24 * COPY_MS
    assert seconds_of_tokens(monkeypatch, tuple(range(LAYERS)), AHEAD)[0] < 1.01 * LAYERS * COPY_MS
    first_stay = seconds_of_tokens(monkeypatch, tuple(range(12, LAYERS)), 1)
    assert first_stay[0] > 1.1 * 24 * COPY_MS, "the clock would tell that it rests while the first layers compute"
    assert seconds_of_tokens(monkeypatch, even, 1)[0] > 1.02 * 24 * COPY_MS, "and between tokens, with one ahead"


@pytest.mark.gpu
def test_on_a_gpu_layers_come_as_fast_as_the_link_brings_them() -> None:
    """24 of 36 layers of 64 MB by turns with products that take about a third of a copy each."""
    device, tokens = torch.device("cuda"), 16384
    hosted, staging = set(spread(24, LAYERS)), Staging()
    these = {number: HostLayer(staging, number) for number in sorted(hosted)}
    states = torch.randn(1, 8, tokens, 128, device=device, dtype=torch.bfloat16)
    square = torch.randn(8192, 4096, device=device, dtype=torch.bfloat16)
    new = states[:, :, :1]
    for layer in these.values():
        layer.reserve(2 * tokens)
        layer.update(states, states)

    def token() -> None:
        for number in range(LAYERS):
            if number in hosted:
                these[number].update(new, new)
            square @ square[:4096].T

    def seconds(run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def copies() -> None:
        for layer in these.values():
            staging.buffers[0][: layer.elements(layer.length)].view(layer.length, 1, -1).copy_(
                layer.slab.rows[: layer.length].flatten(1)[:, None], non_blocking=True
            )

    token()
    before, rounds = staging.brought, 4
    found = min(seconds(lambda: [token() for _ in range(rounds)]) for _ in range(3))
    brought = (staging.brought - before) / (3 * rounds)
    link = min(seconds(copies) for _ in range(3)) * (rounds - AHEAD / 24)  # the first of them had come before
    assert brought == pytest.approx(24 * tokens * 2 * 8 * 128 * 2, rel=1e-2)
    assert found < 1.05 * link, f"{found * 1e3:.1f} ms where the copies alone take {link * 1e3:.1f}"
