from __future__ import annotations

import copy
import gc

import pytest
import torch

from inference_pio.cache.host_slab import HostSlab, room_for
from inference_pio.cache.lane import HereLane, lane_of
from inference_pio.errors import StorageError
from tests.cache.late_lane import LateLane


def filled(tokens: int, lane: HereLane | LateLane | None = None) -> HostSlab:
    slab = HostSlab(2, 5, torch.float32, lane or HereLane(), pinned=False)
    slab.append(rows(tokens))
    return slab


def rows(tokens: int, begin: int = 0) -> torch.Tensor:
    return torch.arange(begin * 10.0, (begin + tokens) * 10).view(tokens, 2, 5)


def test_room_grows_by_a_quarter_in_whole_blocks() -> None:
    assert [room_for(tokens) for tokens in (0, 1, 256, 2048)] == [0, 256, 512, 2560]


def test_tokens_are_appended_and_moved_as_room_grows() -> None:
    slab, addresses = filled(3), set()
    for begin in range(3, 700):
        slab.append(rows(1, begin))
        addresses.add(slab.rows.data_ptr())
    assert slab.length == 700
    assert torch.equal(slab.rows[:700], rows(700))
    assert len(addresses) <= 3
    assert slab.nbytes == len(slab.rows) * 40


def test_reserved_room_does_not_move() -> None:
    slab = filled(3)
    slab.reserve(1000)
    address = slab.rows.data_ptr()
    slab.append(rows(997, 3))
    assert (slab.rows.data_ptr(), len(slab.rows)) == (address, 1000)
    assert torch.equal(slab.rows, rows(1000))
    slab.reserve(10)
    assert slab.rows.data_ptr() == address


def test_rows_of_the_batch_are_taken_in_any_order_and_number() -> None:
    slab = filled(4)
    slab.select(torch.tensor([1, 1, 0]))
    assert torch.equal(slab.rows[:4], rows(4)[:, [1, 1, 0]])
    slab.append(torch.zeros(1, 3, 5))
    assert slab.length == 5


@pytest.mark.parametrize("what", ["grow", "select", "copy"])
def test_what_is_on_its_way_is_waited_for_before_it_is_moved(what: str) -> None:
    lane = LateLane()
    slab = filled(256, lane)
    if what == "grow":
        slab.append(rows(300, 256))
        lane.drain()
    elif what == "select":
        slab.select(torch.tensor([0, 1]))
    else:
        slab = copy.deepcopy(slab)
    assert torch.equal(slab.rows[: slab.length], rows(slab.length))


def test_a_copy_is_apart() -> None:
    slab = filled(4)
    other = copy.deepcopy(slab)
    slab.append(rows(1, 9))
    other.append(rows(1, 4))
    assert torch.equal(other.rows[:5], rows(5))
    assert torch.equal(slab.rows[4], rows(1, 9)[0])


@pytest.mark.gpu
def test_exactly_its_bytes_are_pinned_and_given_back() -> None:
    slab = HostSlab(2, 512, torch.bfloat16, lane_of(torch.device("cuda")), pinned=True)
    slab.append(torch.ones(1000, 2, 512, dtype=torch.bfloat16, device="cuda"))
    slab.lane.drain()
    assert slab.rows.is_pinned()
    assert bool((slab.rows[:1000] == 1).all())
    first = slab.rows
    slab.reserve(5000)
    assert (first.is_pinned(), slab.rows.is_pinned()) == (False, True)
    last = slab.rows
    del slab
    gc.collect()
    assert not last.is_pinned()


def test_memory_that_cannot_be_pinned_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
            return 2

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    slab = HostSlab(2, 5, torch.float32, HereLane(), pinned=True)
    with pytest.raises(StorageError, match=r"could not be pinned for the cache \(CUDA error 2\).*ulimit -l"):
        slab.append(rows(3))
    assert slab.length == 0
