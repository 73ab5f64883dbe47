from __future__ import annotations

import gc
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inference_pio.errors import DiskFull, InvalidSetting, StorageError, VaultError
from inference_pio.undo import private_folder
from inference_pio.undo.checkpoint import Checkpoint
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.parked import View
from inference_pio.undo.transaction import Transaction
from inference_pio.undo.vault import KeepOriginals, Vault
from tests.undo.help import storage_of, take_back

NAN_PAYLOADS = torch.tensor([0x7FC00001, 0x7F800123, -0x00400001, -0x80000000, 0], dtype=torch.int32)
FLOAT8 = torch.tensor([0x7F, 0xFF, 0x80, 0x01], dtype=torch.uint8)

TENSORS = {
    "float32 with not-a-numbers and signed zeros": NAN_PAYLOADS.view(torch.float32),
    "bfloat16": torch.tensor([0x7FC1, -1, -0x8000, 1], dtype=torch.int16).view(torch.bfloat16),
    "float16": torch.tensor([0x7E01, -1, -0x8000, 1], dtype=torch.int16).view(torch.float16),
    "float8": FLOAT8.view(torch.float8_e4m3fn),
    "float8 e5m2": FLOAT8.view(torch.float8_e5m2),
    "bool": torch.tensor([True, False, True]),
    "int8": torch.arange(-5, 5, dtype=torch.int8),
    "int64": torch.arange(5) * 2**40,
    "complex": torch.tensor([1 + 2j, -0.0 - 0.0j]),
    "scalar": torch.tensor(-0.0),
    "scalar in the middle": torch.arange(6.0)[3],
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "every other": torch.arange(12.0).reshape(3, 4)[:, ::2],
    "a slice": torch.arange(12.0)[5:9],
    "expanded": torch.arange(3.0)[:, None].expand(3, 4),
}


def model_with(tensor: torch.Tensor) -> nn.Module:
    """A model with one buffer on a storage that nobody else holds."""
    model = nn.Module()
    storage = tensor.untyped_storage().clone()
    model.register_buffer("kept", View.of(tensor).on(storage))
    return model


def linears() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))


def parked_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.bin")
    return file


@pytest.mark.parametrize("keep", ["auto", "disk", "host", "device"])
@pytest.mark.parametrize("kind", TENSORS)
def test_every_tensor_comes_back_to_the_bit(kind: str, keep: KeepOriginals, tmp_path: Path) -> None:
    model = model_with(TENSORS[kind])
    before, view = fingerprint(model), View.of(model.kept)
    journal = Journal(model, Vault(keep, tmp_path))
    with journal.step("drop") as frame:
        journal.delete(model, "kept")
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert View.of(model.kept) == view


@pytest.mark.parametrize(
    ("keep", "held", "parked", "freed", "where"),
    [
        ("auto", 0, 256, True, "{folder}"),
        ("disk", 0, 256, True, "{folder}"),
        ("host", 256, 0, False, None),
        ("device", 256, 0, False, None),
        ("none", 0, 0, True, "nowhere (keep_originals='none')"),
    ],
)
def test_each_policy_keeps_and_counts_as_it_says(
    keep: KeepOriginals, held: int, parked: int, freed: bool, where: str | None, tmp_path: Path
) -> None:
    model = linears()
    memory, before = storage_of(model[0].weight), fingerprint(model)
    journal = Journal(model, Vault(keep, tmp_path))
    transaction = Transaction(journal)
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
    transaction.commit()
    assert (frame.held_bytes, frame.parked_bytes, memory.expired()) == (held, parked, freed)
    places = [entry.parked.where for entry in frame.entries if hasattr(entry, "parked")]
    if where is None:
        assert places == []
    else:
        assert places[0].startswith(where.format(folder=tmp_path))
    if keep != "none":
        take_back(journal, frame)
        assert before.differences(fingerprint(model)) == []


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(InvalidSetting, match=r"keep_originals='cloud' is not one of auto, checkpoint, host"):
        Vault("cloud")  # type: ignore[arg-type]


# ------------------------------------------------------------------ none


def test_given_up_originals_are_told_and_the_model_works_on(tmp_path: Path) -> None:
    model = linears()
    journal = Journal(model, Vault("none", tmp_path))
    transaction = Transaction(journal)
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
    transaction.commit()
    assert list(tmp_path.rglob("*.bin")) == []
    standing = fingerprint(model)
    with pytest.raises(VaultError, match=r"given up.*load the model anew"):
        take_back(journal, frame)
    assert standing.differences(fingerprint(model)) == []
    assert journal.frames == [frame]


@pytest.mark.parametrize("full", [False, True])
def test_a_failing_step_brings_back_even_what_was_to_be_given_up(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = linears()
    before = fingerprint(model)
    if full:
        monkeypatch.setattr(private_folder.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    journal = Journal(model, Vault("none", tmp_path))
    transaction = Transaction(journal)
    with journal.step("one"):
        journal.replace(model[0], nn.Identity())

    def fail() -> None:
        with journal.step("two"):
            journal.replace(model[1], nn.Identity())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    transaction.rollback()
    assert before.differences(fingerprint(model)) == []
    assert list(tmp_path.rglob("*.bin")) == []


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen", "delete", "empty"])
def test_damaged_originals_are_refused_and_the_model_stays_as_it_was(damage: str, tmp_path: Path) -> None:
    model = linears()
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Linear(8, 8))
    standing, out = fingerprint(model), model(torch.ones(1, 8))
    file = parked_file(tmp_path)
    good = file.read_bytes()
    if damage == "flip":
        file.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    elif damage == "shorten":
        file.write_bytes(good[:-1])
    elif damage == "lengthen":
        file.write_bytes(b"\0" + good)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    for _ in range(2):
        with pytest.raises(VaultError):
            take_back(journal, frame)
        assert standing.differences(fingerprint(model)) == []
        assert torch.equal(model(torch.ones(1, 8)), out)
    file.write_bytes(good)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


@contextmanager
def files_up_to_100_bytes() -> Iterator[None]:
    """As short as can be: the test runner's own output may be a file, and the limit holds for it too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_while_parking_leaves_the_model_and_no_file(tmp_path: Path) -> None:
    model = linears()
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    told = pytest.raises(DiskFull, match=r"filled up while parking.*INFERENCE_PIO_CACHE")
    with told, files_up_to_100_bytes(), journal.step("replace"):
        journal.replace(model[0], nn.Identity())
    assert before.differences(fingerprint(model)) == []
    assert list(tmp_path.rglob("*.bin")) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = linears()
    before = fingerprint(model)
    monkeypatch.setattr(private_folder.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    journal = Journal(model, Vault("disk", tmp_path))
    with pytest.raises(DiskFull, match=r"no room to park.*keep_originals='host' or 'none'"), journal.step("replace"):
        journal.replace(model[0], nn.Identity())
    assert before.differences(fingerprint(model)) == []
    assert list(tmp_path.rglob("*.bin")) == []


@pytest.mark.parametrize("place", ["a file", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(place: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("in the way")
    model = linears()
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path / place))
    with pytest.raises(StorageError, match=r"cannot write originals to.*INFERENCE_PIO_CACHE"), journal.step("replace"):
        journal.replace(model[0], nn.Identity())
    assert before.differences(fingerprint(model)) == []


def test_a_folder_that_was_cleaned_away_is_told_and_what_stands_stays(tmp_path: Path) -> None:
    model = linears()
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("one"):
        journal.replace(model[0], nn.Identity())
    shutil.rmtree(parked_file(tmp_path).parent)
    standing = fingerprint(model)
    with pytest.raises(StorageError, match=r"the folder for originals.*is gone"), journal.step("two"):
        journal.replace(model[1], nn.Identity())
    assert standing.differences(fingerprint(model)) == []


def test_originals_outlive_the_vault_that_parked_them(tmp_path: Path) -> None:
    model = linears()
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
    journal.vault = Vault("host")
    gc.collect()
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    del frame
    gc.collect()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ the checkpoint as a source


def saved(model: nn.Module, folder: Path) -> Path:
    file = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, str(file))
    return file


@pytest.mark.parametrize("keep", ["auto", "checkpoint"])
def test_originals_that_the_checkpoint_holds_need_no_copy(keep: KeepOriginals, tmp_path: Path) -> None:
    model = linears()
    saved(model, tmp_path)
    memory, before = storage_of(model[0].weight), fingerprint(model)
    journal = Journal(model, Vault(keep, tmp_path / "vault", Checkpoint(tmp_path)))
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
    assert memory.expired()
    assert (frame.held_bytes, frame.parked_bytes) == (0, 256)
    assert not (tmp_path / "vault").exists()
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_weights_that_are_narrower_than_the_checkpoint_still_come_from_it(tmp_path: Path) -> None:
    model = linears()
    saved(model, tmp_path)
    model.bfloat16()
    before = fingerprint(model)
    journal = Journal(model, Vault("checkpoint", tmp_path, Checkpoint(tmp_path)))
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_weights_that_differ_from_the_checkpoint_are_parked_elsewhere_or_refused(tmp_path: Path) -> None:
    model = linears()
    saved(model, tmp_path)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
        model[1].weight[3, 3] += 1
    before = fingerprint(model)
    journal = Journal(model, Vault("auto", tmp_path / "vault", Checkpoint(tmp_path)))
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
    assert parked_file(tmp_path / "vault").stat().st_size == 256
    take_back(journal, frame)
    journal.vault = Vault("checkpoint", tmp_path, Checkpoint(tmp_path))
    with pytest.raises(VaultError, match=r"1\.weight is not in the model's own local files"), journal.step("replace"):
        journal.replace(model[1], nn.Identity())
    assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize("damage", ["flip", "shorten", "delete", "another"])
def test_a_checkpoint_that_has_changed_is_noticed_before_anything_is_touched(damage: str, tmp_path: Path) -> None:
    model = linears()
    file = saved(model, tmp_path)
    before = fingerprint(model)
    journal = Journal(model, Vault("checkpoint", tmp_path, Checkpoint(tmp_path)))
    with journal.step("replace") as frame:
        journal.replace(model[1], nn.Identity())
    good, standing = file.read_bytes(), fingerprint(model)
    changed = {"flip": good[:-1] + bytes([good[-1] ^ 1]), "shorten": good[:-9], "another": good[:8] + b"\1" * 900}
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(changed[damage])
    with pytest.raises(VaultError):
        take_back(journal, frame)
    assert standing.differences(fingerprint(model)) == []
    assert model(torch.ones(1, 8)).shape == (1, 8)
    file.write_bytes(good)
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


def test_a_checkpoint_that_is_cut_before_it_is_needed_sends_auto_elsewhere(tmp_path: Path) -> None:
    model = linears()
    file = saved(model, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    file.write_bytes(file.read_bytes()[:-300])
    before = fingerprint(model)
    journal = Journal(model, Vault("auto", tmp_path / "vault", checkpoint))
    with journal.step("replace") as frame:
        journal.replace(model[1], nn.Identity())
    assert parked_file(tmp_path / "vault").is_file()
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize("inside", [False, True])
def test_tensors_come_back_of_the_kind_they_were_whatever_mode_the_caller_is_in(inside: bool, tmp_path: Path) -> None:
    model = linears()
    with torch.inference_mode():
        model[1] = nn.Linear(8, 8)
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    with torch.inference_mode(inside):
        with journal.step("replace") as frame:
            journal.replace(model[0], nn.Identity())
            journal.replace(model[1], nn.Identity())
        take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert not model[0].weight.is_inference()
    model[0](torch.ones(1, 8)).sum().backward()
    assert model[0].weight.grad is not None
