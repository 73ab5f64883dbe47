from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.errors import ModelDrift, VaultError
from inference_pio.undo.fingerprint import Fingerprint, fingerprint
from inference_pio.undo.frame import Frame
from inference_pio.undo.journal import Journal
from inference_pio.undo.slots import MappingWrite
from inference_pio.undo.tensors import Park
from inference_pio.undo.transaction import Transaction
from inference_pio.undo.vault import Vault
from tests.undo.help import Doubled, storage_of, take_back


def model_of(count: int = 4) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(count)])


class Scene:
    """A model with three steps that do not stand on each other, each with bytes parked and moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = model_of(6)
        self.before = fingerprint(self.model)
        self.journal = Journal(self.model, Vault("disk", folder))
        self.closed: list[str] = []
        with self.journal.step("(base)", into=self.journal.base):
            self.journal.set(self.model, "label", "ours")
        for number in range(3):
            self.step(number)
        self.standing = fingerprint(self.model)

    def step(self, number: int) -> Frame:
        model, journal = self.model, self.journal
        with journal.step(f"step {number}") as frame:
            journal.replace(model[number], nn.Linear(4, 4))
            journal.rehouse({model[3 + number].weight: model[3 + number].weight.detach().clone()})
            journal.set(model[3 + number], "note", number)
            journal.register(model, vars(model), f"mark{number}", number)
            journal.defer(lambda: self.closed.append(f"step {number}"))
            journal.defer(lambda: self.closed.append(f"step {number}, opened last"))
        return frame

    @property
    def files(self) -> int:
        return len(list(self.folder.rglob("*.bin")))


def same(one: Fingerprint, other: Fingerprint) -> bool:
    return one.differences(other) == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_steps_are_lifted_out_in_any_order(order: tuple[int, ...], tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    frames = list(scene.journal.frames)
    assert all(one.commutes_with(other) for one, other in itertools.combinations(frames, 2))
    for number in order:
        take_back(scene.journal, frames[number])
        assert not hasattr(scene.model, f"mark{number}")
    assert scene.journal.frames == []
    take_back(scene.journal, scene.journal.base)
    assert same(scene.before, fingerprint(scene.model))
    assert scene.files == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_keys_survives_lifting_steps_out_in_any_order(order: tuple[int, ...]) -> None:
    model = nn.Module()
    for name in "abcd":
        model.register_parameter(name, nn.Parameter(torch.zeros(1)))
    before, keys = fingerprint(model), list(model.state_dict())
    journal = Journal(model, Vault("host"))
    for name in ("b", "c", "a"):
        with journal.step(name):
            journal.delete(model, name)
    frames = list(journal.frames)
    for number in order:
        take_back(journal, frames[number])
    assert list(model.state_dict()) == keys
    assert same(before, fingerprint(model))


def test_closers_run_at_commit_only_and_the_last_opened_first(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    transaction = Transaction(scene.journal)
    transaction.undo(scene.journal.frames[1:])
    assert scene.closed == []
    transaction.commit()
    assert scene.closed == ["step 2, opened last", "step 2", "step 1, opened last", "step 1"]


def test_files_of_originals_go_at_commit_only(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    files = scene.files
    transaction = Transaction(scene.journal)
    transaction.undo(scene.journal.frames)
    assert scene.files == files == 3
    transaction.commit()
    assert scene.files == 0


@pytest.mark.parametrize("undone", [[0], [1], [2], [0, 2], [0, 1, 2], ["base", 0, 1, 2]])
def test_a_rollback_after_an_undo_is_as_if_nothing_had_been(undone: list[Any], tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    frames = list(scene.journal.frames)
    transaction = Transaction(scene.journal)
    transaction.undo([scene.journal.base if number == "base" else frames[number] for number in undone])
    assert not same(scene.standing, fingerprint(scene.model))
    transaction.rollback()
    assert scene.journal.frames == frames
    assert same(scene.standing, fingerprint(scene.model))
    assert scene.closed == []
    take_back(scene.journal, scene.journal.base, *frames)
    assert same(scene.before, fingerprint(scene.model))


def test_a_rollback_takes_new_steps_off_before_it_brings_the_old_ones_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    frames, files = list(scene.journal.frames), scene.files
    transaction = Transaction(scene.journal)
    transaction.undo([frames[1]])
    scene.step(1)
    with scene.journal.step("another"):
        scene.journal.replace(scene.model[0], Doubled(scene.model[0]))
        scene.journal.replace(scene.model[1], nn.Identity())
    transaction.rollback()
    assert scene.journal.frames == frames
    assert same(scene.standing, fingerprint(scene.model))
    assert scene.files == files
    assert scene.closed == ["step 1, opened last", "step 1"]
    take_back(scene.journal, scene.journal.base, *frames)
    assert same(scene.before, fingerprint(scene.model))


def test_a_rollback_takes_back_what_was_added_to_the_base(tmp_path: Path) -> None:
    model = model_of()
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    transaction = Transaction(journal)
    with journal.step("(base)", into=journal.base):
        journal.set(model, "label", "ours")
    with journal.step("one"):
        journal.replace(model[0], nn.Identity())
    transaction.rollback()
    assert same(before, fingerprint(model))
    assert (journal.frames, journal.base.entries) == ([], [])


@pytest.mark.parametrize("phase", ["fetch", "rebind"])
@pytest.mark.parametrize("error", [VaultError("damaged"), MemoryError("full"), KeyboardInterrupt(), RuntimeError("no")])
def test_an_undo_that_fails_in_either_phase_leaves_everything_as_it_was(
    phase: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    frames = list(scene.journal.frames)
    entries = frames[0].entries
    failing = next(entry for entry in entries if isinstance(entry, Park if phase == "fetch" else MappingWrite))

    def broken() -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(failing, "prepare" if phase == "fetch" else "undo", broken)
        transaction = Transaction(scene.journal)
        with pytest.raises(type(error)):
            transaction.undo(frames)
    assert scene.journal.frames == frames
    assert same(scene.standing, fingerprint(scene.model))
    assert [entry.fetched for frame in frames for entry in frame.entries if isinstance(entry, Park)] == [None] * 3
    transaction.rollback()
    assert same(scene.standing, fingerprint(scene.model))
    take_back(scene.journal, scene.journal.base, *frames)
    assert same(scene.before, fingerprint(scene.model))


def test_ctrl_c_in_the_second_phase_comes_when_the_model_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    frames = list(scene.journal.frames)
    pressed = MappingWrite.undo

    def press(entry: MappingWrite) -> None:
        signal.raise_signal(signal.SIGINT)
        pressed(entry)

    with monkeypatch.context() as patch:
        patch.setattr(MappingWrite, "undo", press)
        transaction = Transaction(scene.journal)
        with pytest.raises(KeyboardInterrupt):
            transaction.undo(frames)
        transaction.rollback()
    assert same(scene.standing, fingerprint(scene.model))
    take_back(scene.journal, scene.journal.base, *frames)
    assert same(scene.before, fingerprint(scene.model))


def test_ctrl_c_while_a_failed_step_unwinds_comes_when_it_is_unwound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    pressed = MappingWrite.undo

    def press(entry: MappingWrite) -> None:
        signal.raise_signal(signal.SIGINT)
        pressed(entry)

    monkeypatch.setattr(MappingWrite, "undo", press)

    def fail() -> None:
        with scene.journal.step("fails"):
            scene.journal.replace(scene.model[3], nn.Identity())
            scene.journal.set(scene.model, "note", 1)
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt) as told:
        fail()
    assert isinstance(told.value.__context__, ZeroDivisionError)
    assert same(scene.standing, fingerprint(scene.model))


def test_a_rollback_goes_on_when_a_new_step_cannot_be_unwound_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    frames = list(scene.journal.frames)
    transaction = Transaction(scene.journal)
    transaction.undo([frames[2]])
    with scene.journal.step("new") as new:
        scene.journal.set(scene.model, "new", 1)

    def broken() -> None:
        raise MemoryError("still full")

    undo = new.entries[0].undo
    monkeypatch.setattr(new.entries[0], "undo", broken)
    with pytest.raises(VaultError, match="new could not be brought back"):
        transaction.rollback()
    undo()
    assert scene.journal.frames == frames
    assert same(scene.standing, fingerprint(scene.model))


def test_drift_is_told_before_anything_is_fetched_or_written(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.model.mark1 = "theirs"
    standing = fingerprint(scene.model)
    with pytest.raises(ModelDrift, match="mark1"):
        Transaction(scene.journal).undo(scene.journal.frames)
    assert same(standing, fingerprint(scene.model))
    take_back(scene.journal, scene.journal.base, *scene.journal.frames, on_drift="discard")
    assert same(scene.before, fingerprint(scene.model))


def test_a_foreign_value_that_is_discarded_comes_back_if_the_removal_fails_later(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    frames = list(scene.journal.frames)
    scene.model[0] = Doubled(scene.model[0])
    scene.model.mark1 = "theirs"
    scene.model[4].weight.data = torch.ones(4, 4)
    del scene.model[5].note
    standing = fingerprint(scene.model)
    transaction = Transaction(scene.journal)
    transaction.undo(frames, on_drift="discard")
    transaction.rollback()
    assert same(standing, fingerprint(scene.model))


def test_a_rollback_after_a_commit_changes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    transaction = Transaction(scene.journal)
    transaction.undo([scene.journal.base, *scene.journal.frames])
    transaction.commit()
    transaction.rollback()
    assert same(scene.before, fingerprint(scene.model))
    assert scene.journal.frames == []


def test_two_phases_hold_no_more_than_what_comes_back(tmp_path: Path) -> None:
    """A commit lets go of the new homes and of what was fetched."""
    scene = Scene(tmp_path)
    home = storage_of(scene.model[3].weight)
    transaction = Transaction(scene.journal)
    transaction.undo(scene.journal.frames)
    assert not home.expired()
    transaction.commit()
    assert home.expired()


@pytest.mark.parametrize("gradients", [True, False])
def test_a_rollback_gives_back_the_gradient_mode(gradients: bool, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with torch.set_grad_enabled(gradients):
        transaction = Transaction(scene.journal)
        torch.set_grad_enabled(not gradients)  # as a Ctrl-C between opening and `with` leaves it
        transaction.rollback()
        assert torch.is_grad_enabled() is gradients
