"""Units are put away and stream; what is foretold on a skeleton is what is done, and all of it comes off again."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from inference_pio.errors import StorageError, StreamError
from inference_pio.plan.skeleton import skeleton_of, tensor_bytes
from inference_pio.streaming.build import How, foretell, put_on_stream
from inference_pio.streaming.hooks import stream_of
from inference_pio.streaming.units import Streamable, Unit
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.vault import Vault
from tests import tiny
from tests.undo.help import take_back

PATHS = ["model.layers.0", "model.layers.2"]


def units_of(model: nn.Module) -> list[Unit]:
    streamable = Streamable(model)
    return [streamable.unit(path) for path in PATHS]


def test_units_stream_and_come_back_as_they_were(tmp_path: Path) -> None:
    model = tiny.build("llama")
    before, logits = fingerprint(model), tiny.logits(model, "llama")
    process = psutil.Process()
    threads, files = threading.active_count(), process.num_fds()
    journal = Journal(model, Vault("disk", tmp_path / "undo"))
    with journal.step("stream") as frame:
        backend, note = put_on_stream(journal, model, units_of(model), (), 1, How(tmp_path / "root", 2, "first"))
    assert backend.startswith("2 threads, ")
    assert f"written to {tmp_path / 'root'}" in note
    assert torch.equal(tiny.logits(model, "llama"), logits)
    assert stream_of(model).counts.units == 4
    assert frame.held_bytes == 0
    assert frame.parked_bytes == 2 * 126_464
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []
    assert (threading.active_count(), process.num_fds()) == (threads, files)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_skeleton_takes_what_the_model_will_take(tmp_path: Path) -> None:
    model = tiny.build("llama")
    bones = skeleton_of(model)
    on_bones, on_model = Journal(bones, Vault("device")), Journal(model)
    with on_bones.step("stream") as foretold:
        foretell(on_bones, bones, units_of(bones), 126_464)
    with on_model.step("stream") as done:
        put_on_stream(on_model, model, units_of(model), (), 1, How(tmp_path / "root", 1, "size"))
    assert tensor_bytes(bones) == tensor_bytes(model)
    assert foretold.writes <= done.writes
    take_back(on_bones, foretold)
    assert tensor_bytes(bones) == 446_784
    take_back(on_model, done)


@pytest.mark.parametrize("fault", ["a folder that cannot be", "a file that goes at once"])
def test_a_failure_leaves_nothing_open(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    process = psutil.Process()
    threads, files = threading.active_count(), process.num_fds()
    journal = Journal(model)
    if fault == "a folder that cannot be":
        (tmp_path / "root").write_text("")
    else:
        monkeypatch.setattr("inference_pio.streaming.reader.OpenFile", _gone)
    with pytest.raises((StorageError, StreamError)), journal.step("stream"):
        put_on_stream(journal, model, units_of(model), (), 1, How(tmp_path / "root", 2, "first"))
    assert before.differences(fingerprint(model)) == []
    assert (threading.active_count(), process.num_fds()) == (threads, files)


def _gone(*given: object, **named: object) -> None:
    raise StreamError("gone")
