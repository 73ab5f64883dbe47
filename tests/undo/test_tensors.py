from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.errors import VaultError
from inference_pio.undo import tensors as tensors_module
from inference_pio.undo.fingerprint import digest
from inference_pio.undo.parked import View
from inference_pio.undo.slots import Slot
from inference_pio.undo.tensors import Park, PutAway, Rehouse, point, stand_in_for
from inference_pio.undo.vault import Vault
from tests.undo.help import storage_of

SLOT = Slot("", "data", "x")


def tied() -> list[torch.Tensor]:
    """Three tensors on one storage, one of another type."""
    whole = torch.arange(12.0)
    return [nn.Parameter(whole[2:6]), whole[4:].reshape(2, 4).t().detach(), whole.view(torch.int32)[9:].detach()]


def state(tensors: list[torch.Tensor]) -> list[Any]:
    keys = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return [len(keys), *[(id(tensor), View.of(tensor), digest(tensor)) for tensor in tensors]]


def park(tensors: list[torch.Tensor], folder: Path) -> Park:
    return Park(SLOT, tensors, Vault("disk", folder).park(tensors, {}))


def rehouse(tensors: list[torch.Tensor], folder: Path) -> Rehouse:
    return Rehouse(SLOT, tensors, [tensor.detach().clone() for tensor in tensors])


def put_away(tensors: list[torch.Tensor], folder: Path) -> PutAway:
    return PutAway(SLOT, tensors, Vault("disk", folder).park(tensors, {}))


WRITES: list[Callable[[list[torch.Tensor], Path], Park | Rehouse]] = [park, rehouse, put_away]


@pytest.mark.parametrize("write", WRITES)
def test_tensors_of_one_storage_come_back_sharing_it(write: Any, tmp_path: Path) -> None:
    tensors = tied()
    before, memory = state(tensors), storage_of(tensors[0])
    entry = write(tensors, tmp_path)
    for _ in range(2):
        entry.redo()
        assert memory.expired()
        entry.undo()
        assert state(tensors) == before
        memory = storage_of(tensors[0])


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("stop", range(3))
@pytest.mark.parametrize("way", ["redo", "undo"])
def test_an_interrupted_write_can_be_finished_either_way(
    write: Any, stop: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tied()
    before = state(tensors)
    entry = write(tensors, tmp_path)
    if way == "undo":
        entry.redo()
    calls = 0

    def interrupted(tensor: torch.Tensor, data: torch.Tensor) -> None:
        nonlocal calls
        if calls == stop:
            raise KeyboardInterrupt
        calls += 1
        point(tensor, data)

    with monkeypatch.context() as patch:
        patch.setattr(tensors_module, "point", interrupted)
        with pytest.raises(KeyboardInterrupt):
            getattr(entry, way)()
    entry.redo()
    written = state(tensors)
    entry.undo()
    entry.undo()
    assert state(tensors) == before
    entry.redo()
    assert state(tensors) == written
    entry.undo()
    assert state(tensors) == before


def test_tensors_that_are_put_away_look_as_they_did_and_cost_a_number_each(tmp_path: Path) -> None:
    tensors = tied()
    shapes = [(type(tensor), tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in tensors]
    entry = put_away(tensors, tmp_path)
    entry.redo()
    assert [(type(tensor), tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in tensors] == shapes
    assert tensors[0].isnan().all()
    assert tensors[1].isnan().all()
    assert (tensors[2] == 0x7F7F7F7F).all()
    assert [tensor.untyped_storage().nbytes() for tensor in tensors] == [4, 4, 4]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 3


def test_true_values_shown_for_a_while_are_no_drift_and_other_data_are(tmp_path: Path) -> None:
    tensors = tied()
    true = tensors[0].detach().clone()
    entry = put_away(tensors, tmp_path)
    entry.rest = lambda: point(tensors[0], entry.stand_ins[0]) if torch.equal(tensors[0], true) else None
    entry.redo()
    point(tensors[0], true.clone())
    assert not entry.was_moved()
    assert tensors[0].isnan().all()
    point(tensors[1], torch.ones(4, 2))
    assert entry.was_moved()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint8])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_stand_in_is_no_number_or_the_largest_byte_everywhere(dtype: torch.dtype, device: str) -> None:
    stand_in = stand_in_for(torch.zeros(3, 2, dtype=dtype, device=device).t())
    assert (stand_in.shape, stand_in.dtype, stand_in.device.type) == ((2, 3), dtype, device)
    if device == "cpu":
        number = stand_in.to(torch.float32)
        assert number.isnan().all() if dtype.is_floating_point else (number == 127).all()


def test_parked_tensors_keep_type_and_identity_and_lose_their_bytes(tmp_path: Path) -> None:
    tensors = tied()
    entry = park(tensors, tmp_path)
    entry.redo()
    assert [tensor.numel() for tensor in tensors] == [0, 0, 0]
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.float32, torch.int32]
    assert tensors[0].requires_grad
    assert (entry.nbytes, entry.held_bytes) == (48, 0)


@pytest.mark.parametrize("make", [lambda t: t + 1, lambda t: t.double(), lambda t: t[:1], lambda t: t.to("meta")])
def test_a_home_must_hold_the_very_bits(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = torch.arange(4.0)
    with pytest.raises(VaultError, match="would change its bytes"):
        Rehouse(SLOT, [tensor], [make(tensor)])


def test_signed_zeros_and_not_a_numbers_may_move() -> None:
    tensor = torch.tensor([0x7FC00001, -0x80000000], dtype=torch.int32).view(torch.float32)
    entry = Rehouse(SLOT, [tensor], [tensor.clone()])
    entry.redo()
    entry.undo()
    assert tensor.view(torch.int32).tolist() == [0x7FC00001, -0x80000000]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 4),
        torch.tensor(3.0),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(3.0)[:, None].expand(3, 4),
        torch.tensor([True, False]),
        torch.zeros(3, device="meta"),
    ],
)
def test_odd_shapes_come_back_with_their_strides(tensor: torch.Tensor) -> None:
    view = View.of(tensor)
    entry = Rehouse(SLOT, [tensor], [tensor.contiguous().clone()])
    entry.redo()
    assert tensor.is_contiguous()
    entry.undo()
    assert View.of(tensor) == view


def test_values_changed_in_place_while_away_are_kept() -> None:
    """Training goes on in the new home; taking the move back must not lose it."""
    tensor = torch.arange(4.0)
    entry = Rehouse(SLOT, [tensor], [tensor.clone()])
    entry.redo()
    entry.prepare()
    tensor += 1
    entry.undo()
    assert tensor.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_data_that_somebody_else_put_in_is_lost_on_undo_and_back_on_redo() -> None:
    tensor = torch.arange(4.0)
    entry = Rehouse(SLOT, [tensor], [tensor.clone()])
    entry.redo()
    assert not entry.was_moved()
    tensor.data = torch.full((2,), 9.0)
    assert entry.was_moved()
    entry.undo()
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
    entry.redo()
    assert tensor.tolist() == [9.0, 9.0]


def test_an_earlier_home_is_let_go_while_a_later_one_is_lived_in() -> None:
    tensor = torch.arange(4.0)
    first = Rehouse(SLOT, [tensor], [tensor.clone()])
    first.redo()
    home = storage_of(tensor)
    second = Rehouse(SLOT, [tensor], [tensor.clone()], [first])
    second.redo()
    assert home.expired()
    assert not first.was_moved()
    second.undo()
    assert not first.was_moved()
    first.undo()
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
