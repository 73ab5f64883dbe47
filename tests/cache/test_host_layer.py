from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicLayer

from inference_pio.cache.host_layer import HostLayer
from inference_pio.cache.staging import Staging
from inference_pio.cache.store import Kind
from inference_pio.errors import InvalidSetting
from tests.cache.late_lane import put_late_lanes
from tests.cache.test_store import CPU, states

KINDS = {
    "grouped": Kind(2, 3, 32, 3, 32, torch.bfloat16, CPU),
    "narrow values": Kind(2, 4, 12, 4, 6, torch.float32, CPU),
    "latent": Kind(2, 1, 48, 1, 6, torch.bfloat16, CPU),
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def alike(ours: HostLayer, theirs: DynamicLayer, kind: Kind, tokens: int, seed: int) -> None:
    new = states(kind, tokens, seed)
    for found, wanted in zip(ours.update(*new), theirs.update(*new), strict=True):
        assert torch.equal(found, wanted)
    assert ours.get_seq_length() == theirs.get_seq_length()


@pytest.fixture(params=["here", "late"], autouse=True)
def _lanes(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "late":
        put_late_lanes(monkeypatch)


@EACH_KIND
def test_it_is_the_librarys_layer_to_the_bit(kind: Kind) -> None:
    ours, theirs = HostLayer(Staging(), 0), DynamicLayer()
    for seed, tokens in enumerate([70, 1, 1, 300, 5]):
        alike(ours, theirs, kind, tokens, seed)
    for crop in (-3, 0, -200):
        ours.crop(crop)
        theirs.crop(crop)
        alike(ours, theirs, kind, 4, crop)
    for rows in ([1, 0], [0, 0]):
        ours.reorder_cache(torch.tensor(rows))
        theirs.reorder_cache(torch.tensor(rows))
        alike(ours, theirs, kind, 2, 7)
    ours.batch_repeat_interleave(3)
    theirs.batch_repeat_interleave(3)
    alike(ours, theirs, kind._replace(batch=6), 2, 8)
    ours.batch_select_indices(torch.tensor([5, 0]))
    theirs.batch_select_indices(torch.tensor([5, 0]))
    alike(ours, theirs, kind, 1, 9)
    assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)


@EACH_KIND
def test_an_emptied_layer_begins_again_and_takes_another_kind(kind: Kind) -> None:
    layer = HostLayer(Staging(), 0)
    layer.reset()
    layer.crop(-1)
    layer.select(torch.tensor([0]))
    assert (layer.get_seq_length(), layer.nbytes) == (0, 0)
    alike(layer, DynamicLayer(), kind, 20, 0)
    room = layer.nbytes
    layer.reset()
    assert layer.get_seq_length() == 0
    alike(layer, DynamicLayer(), kind, 20, 1)
    assert layer.nbytes == room
    layer.reset()
    alike(layer, DynamicLayer(), kind._replace(batch=3, dtype=torch.float16), 20, 2)


def test_what_would_go_wrong_is_refused() -> None:
    kind = KINDS["grouped"]
    layer = HostLayer(Staging(), 0)
    layer.update(*states(kind, 9, 0))
    with pytest.raises(InvalidSetting, match=r"the cache holds 9 tokens of Kind"):
        layer.update(*states(kind._replace(batch=3), 1, 0))
    with pytest.raises(InvalidSetting, match=r"crop\(4 - cache.get_seq_length\(\)\)"):
        layer.crop(4)
    keys, values = states(kind, 1, 0)
    with pytest.raises(InvalidSetting, match="keeps no graph for a backward pass"):
        layer.update(keys.requires_grad_(), values)
    assert layer.get_seq_length() == 9


def test_room_may_be_told_beforehand() -> None:
    kind = KINDS["grouped"]
    layer = HostLayer(Staging(), 0)
    layer.reserve(1000)
    layer.update(*states(kind, 9, 0))
    address = layer.slab.rows.data_ptr()
    layer.update(*states(kind, 991, 1))
    assert layer.slab.rows.data_ptr() == address


def test_made_in_inference_mode_it_serves_outside() -> None:
    kind = KINDS["grouped"]
    layer = HostLayer(Staging(), 0)
    with torch.inference_mode():
        layer.update(*states(kind, 9, 0))
    layer.update(*states(kind, 1, 1))
    assert layer.get_seq_length() == 10


@EACH_KIND
def test_copies_are_apart(kind: Kind) -> None:
    ours, theirs = HostLayer(Staging(), 0), DynamicLayer()
    alike(ours, theirs, kind, 9, 0)
    other, wanted = copy.deepcopy(ours), copy.deepcopy(theirs)
    alike(ours, theirs, kind, 3, 1)
    alike(other, wanted, kind, 5, 2)
    alike(ours, theirs, kind, 1, 3)
    assert other.staging is not ours.staging
