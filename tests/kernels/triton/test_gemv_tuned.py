"""What was tuned is read back on the same machine alone; a file that is damaged is told of and written anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from inference_pio.errors import StorageError
from inference_pio.kernels.triton import gemv_tuned
from inference_pio.kernels.triton.gemv_candidates import GemvProblem
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.gemv_tuned import TunedLaunches, kernel_digest, machine_of
from inference_pio.kernels.triton.gemv_tuning import Tuning

MACHINE = {"device": "a GPU", "capability": "9.0", "torch": "2", "triton": "3", "source": "abc"}
PROBLEM, OTHER = GemvProblem(1, 2560, (6144,)), GemvProblem(2, 2560, (6144,), dependent=True)
LAUNCH, SLOWER = GemvLaunch(2, 512, 1), GemvLaunch(16, 256, 2, stages=4, dependent=True)
TUNING = Tuning(LAUNCH, {LAUNCH: 12.5, SLOWER: 13.0}, ("a note",))


def test_what_is_kept_is_read_back_with_its_times(tmp_path: Path) -> None:
    first = TunedLaunches(tmp_path / "new", MACHINE)
    assert (first.found, first.ignored, first.launch_for(PROBLEM)) == ({}, None, None)
    first.keep(PROBLEM, TUNING)
    first.keep(OTHER, Tuning(SLOWER, {SLOWER: 1.0}))
    again = TunedLaunches(tmp_path / "new", dict(MACHINE))
    assert again.ignored is None
    assert again.found == {PROBLEM.key(): TUNING, OTHER.key(): Tuning(SLOWER, {SLOWER: 1.0})}
    assert again.launch_for(PROBLEM) == first.launch_for(PROBLEM) == LAUNCH
    assert again.launch_for(GemvProblem(3, 2560, (6144,))) is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == [again.file.name]


@pytest.mark.parametrize("what", MACHINE)
def test_another_machine_version_or_kernel_has_a_file_of_its_own(what: str, tmp_path: Path) -> None:
    TunedLaunches(tmp_path, MACHINE).keep(PROBLEM, TUNING)
    other = TunedLaunches(tmp_path, MACHINE | {what: "another"})
    assert other.launch_for(PROBLEM) is None
    other.keep(PROBLEM, Tuning(SLOWER, {}))
    assert TunedLaunches(tmp_path, MACHINE).launch_for(PROBLEM) == LAUNCH


def test_two_processes_keep_what_each_has_found(tmp_path: Path) -> None:
    one, two = (TunedLaunches(tmp_path, MACHINE) for _ in range(2))
    one.keep(PROBLEM, TUNING)
    two.keep(OTHER, TUNING)
    assert set(TunedLaunches(tmp_path, MACHINE).found) == {PROBLEM.key(), OTHER.key()}
    assert two.launch_for(PROBLEM) == LAUNCH


def test_parts_are_kept_and_a_launch_without_them_has_one(tmp_path: Path) -> None:
    cut = GemvLaunch(4, 512, 4, stages=2, dependent=True, parts=4)
    tuned = TunedLaunches(tmp_path, MACHINE)
    tuned.keep(PROBLEM, Tuning(cut, {cut: 1.0}))
    assert TunedLaunches(tmp_path, MACHINE).launch_for(PROBLEM) == cut
    document = whole(tmp_path)
    del document["problems"][PROBLEM.key()]["launch"]["parts"]
    tuned.file.write_text(json.dumps(document))
    assert TunedLaunches(tmp_path, MACHINE).launch_for(PROBLEM) == LAUNCH


def whole(tmp_path: Path) -> dict:  # type: ignore[type-arg]
    tuned = TunedLaunches(tmp_path, MACHINE)
    tuned.keep(PROBLEM, TUNING)
    return json.loads(tuned.file.read_text())  # type: ignore[no-any-return]


def _changed(**launch: object):  # type: ignore[no-untyped-def]
    def change(document: dict) -> str:  # type: ignore[type-arg]
        document["problems"][PROBLEM.key()]["launch"] |= launch
        return json.dumps(document)

    return change


DAMAGES = {
    "empty": lambda document: "",
    "cut": lambda document: json.dumps(document)[:-20],
    "no text": lambda document: b"\xff\xfe\x00",
    "a list": lambda document: "[1]",
    "null": lambda document: "null",
    "deep": lambda document: "[" * 200_000,
    "no problems": lambda document: json.dumps({**document, "problems": None}),
    "no times": lambda document: json.dumps({**document, "problems": {PROBLEM.key(): {"launch": {}}}}),
    "a word": _changed(rows="2"),
    "three rows": _changed(rows=3),
    "too many warps": _changed(warps=64),
    "an unknown number": _changed(steps=2),
    "few rows for matrix units": _changed(stages=2),
    "no truth": _changed(dependent="yes"),
    "a truth for a number": _changed(rows=True),
    "a truth for parts": _changed(parts=True),
    "parts without matrix units": _changed(parts=2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_of_and_written_anew(damage: str, tmp_path: Path) -> None:
    text = DAMAGES[damage](whole(tmp_path))
    file = TunedLaunches(tmp_path, MACHINE).file
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    tuned = TunedLaunches(tmp_path, MACHINE)
    assert tuned.found == {}
    assert tuned.ignored is not None
    assert tuned.ignored.startswith(f"{file} is damaged (")
    tuned.keep(OTHER, TUNING)
    again = TunedLaunches(tmp_path, MACHINE)
    assert (again.ignored, set(again.found)) == (None, {OTHER.key()})


@pytest.mark.parametrize("foreign", [{"format": 2}, {"machine": {"device": "another"}}], ids=str)
def test_a_file_that_was_made_elsewhere_is_told_of(foreign: dict[str, object], tmp_path: Path) -> None:
    file = TunedLaunches(tmp_path, MACHINE).file
    file.write_text(json.dumps(whole(tmp_path) | foreign))
    tuned = TunedLaunches(tmp_path, MACHINE)
    assert tuned.found == {}
    assert "was made for another machine or by another version" in (tuned.ignored or "")


def test_a_place_that_is_no_file_is_told_of(tmp_path: Path) -> None:
    TunedLaunches(tmp_path, MACHINE).file.mkdir()
    assert "cannot be read (Is a directory)" in (TunedLaunches(tmp_path, MACHINE).ignored or "")


def test_a_folder_that_cannot_be_written_loses_no_launch(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    tuned = TunedLaunches(tmp_path / "taken" / "deeper", MACHINE)
    with pytest.raises(StorageError):
        tuned.keep(PROBLEM, TUNING)
    assert tuned.launch_for(PROBLEM) == LAUNCH


def test_another_source_of_the_kernel_is_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernel_digest()
    for name in gemv_tuned.SOURCES:
        (tmp_path / name).write_bytes((Path(gemv_tuned.__file__).parent / name).read_bytes())
    monkeypatch.setattr(gemv_tuned, "__file__", str(tmp_path / "gemv_tuned.py"))
    assert kernel_digest() == before
    (tmp_path / "gemv.py").write_text("another kernel")
    assert kernel_digest() != before


def test_the_source_is_all_that_kernels_call() -> None:
    folder, called, open_ones = Path(gemv_tuned.__file__).parent, set[str](), ["gemv.py", "exponent12_gemv.py"]
    while open_ones:
        name = open_ones.pop()
        text = (folder / name).read_text()
        if name not in called and "@triton.jit" in text:
            called.add(name)
            open_ones += [
                f"{other}.py" for other in re.findall(r"^from inference_pio\.kernels\.triton\.(\w+)", text, re.M)
            ]
    assert {"gemv_sums.py", "overlap.py"} < called
    assert called <= set(gemv_tuned.SOURCES)


@pytest.mark.gpu
def test_gpu_a_machine_says_what_times_depend_on() -> None:
    machine = machine_of(torch.device("cuda"))
    assert set(machine) == set(MACHINE)
    assert all(machine.values())
    assert machine == machine_of(torch.device("cuda", 0))
