from __future__ import annotations

import errno
import gc
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from inference_pio.errors import DiskFull, MeasureError, StorageError
from inference_pio.measure.reference import Reference
from inference_pio.measure.text import sampled_tokens
from tests.tiny import build

TOKENS = sampled_tokens(120, 3 * 17).view(3, 17)


def open_files_under(folder: Path) -> list[str]:
    """Where this process's open files lie, unlinked ones too."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(folder))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_vl"])
def test_the_originals_logits_come_back_bit_for_bit(name, dtype):
    model = build(name, dtype)
    with Reference.record(model, TOKENS) as reference:
        assert reference.dtype is dtype
        for window in (2, 0, 1):
            with torch.no_grad():
                expected = model(input_ids=TOKENS[window : window + 1]).logits[0, :-1]
            assert torch.equal(reference.logits(window), expected)


def test_its_perplexity_is_that_of_the_library():
    model = build("llama")
    with Reference.record(model, TOKENS) as reference, torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss.double() for row in TOKENS]
        assert reference.perplexity == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-6)
        low, high = reference.perplexity_interval
        assert low < reference.perplexity < high


def test_the_original_need_not_stay():
    model = build("gpt2")
    with Reference.record(model, TOKENS) as reference:
        expected = model(input_ids=TOKENS[:1]).logits[0, :-1].detach()
        del model
        gc.collect()
        assert torch.equal(reference.logits(0), expected)


def test_the_file_has_no_name_and_belongs_to_the_user_alone(tmp_path):
    with Reference.record(build("llama"), TOKENS, tmp_path) as reference:
        assert list(tmp_path.iterdir()) == []
        assert stat.S_IMODE(os.fstat(reference._file.fileno()).st_mode) == 0o600
        assert os.fstat(reference._file.fileno()).st_size == 3 * 16 * 131 * 4


@pytest.mark.parametrize("way", ["close", "exit", "collected", "failed"])
def test_the_file_is_gone_afterwards(way, tmp_path):
    reference = Reference.record(build("llama"), TOKENS, tmp_path)
    assert len(open_files_under(tmp_path)) == 1
    if way == "close":
        reference.close()
        reference.close()
    elif way == "exit":
        with reference:
            pass
    elif way == "failed":
        with pytest.raises(ZeroDivisionError), reference:
            raise ZeroDivisionError
    else:
        del reference
        gc.collect()
    assert open_files_under(tmp_path) == []


def test_the_file_is_gone_when_the_process_is_killed(tmp_path):
    code = f"""
import os, signal, torch
from inference_pio.measure.reference import Reference

class Table(torch.nn.Embedding):
    def forward(self, input_ids):
        return super().forward(input_ids)

kept = Reference.record(Table(5, 5).eval(), torch.ones(2, 9, dtype=torch.int64), {str(tmp_path)!r})
kept.logits(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = str(Path(__file__).parents[2] / "src")
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert ended.returncode == -9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [MeasureError, KeyboardInterrupt])
def test_a_recording_that_fails_leaves_nothing(error, tmp_path):
    def fail_late(phase: str, fraction: float) -> None:
        if fraction > 0.5:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        Reference.record(build("llama"), TOKENS, tmp_path, fail_late)
    gc.collect()
    assert open_files_under(tmp_path) == []


def test_a_closed_reference_says_what_to_do():
    reference = Reference.record(build("llama"), TOKENS)
    reference.close()
    with pytest.raises(MeasureError, match="record it again"):
        reference.logits(0)
    assert reference.perplexity > 1  # what is in memory stays


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=64 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match=rf"{tmp_path} needs 67 MB and its disk has 67 MB free"):
        Reference.record(build("llama"), TOKENS, tmp_path)
    assert open_files_under(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way_is_told(tmp_path, monkeypatch):
    def full(self: Reference, window: int, logits: torch.Tensor) -> None:
        self._file = FullDisk()
        keep(self, window, logits)

    class FullDisk:
        def write(self, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    keep = Reference._keep
    monkeypatch.setattr(Reference, "_keep", full)
    with pytest.raises(DiskFull, match=str(tmp_path)):
        Reference.record(build("llama"), TOKENS, tmp_path)
    assert open_files_under(tmp_path) == []


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StorageError, match="nowhere"):
        Reference.record(build("llama"), TOKENS, tmp_path / "nowhere")


def test_a_file_that_was_cut_is_told():
    with Reference.record(build("llama"), TOKENS) as reference:
        reference._file.truncate(100)
        with pytest.raises(MeasureError, match="ends inside window 1"):
            reference.logits(1)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(MeasureError, match="training mode"):
        Reference.record(build("llama").train(), TOKENS)


def test_recording_changes_nothing_in_the_model():
    model = build("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, id(module)) for name, module in model.named_modules()]
    Reference.record(model, TOKENS).close()
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_of_plain_tensors_is_recorded_too():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(120, 121)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.rows(input_ids)

    table = Table().eval()
    with Reference.record(table, TOKENS) as reference:
        assert torch.equal(reference.logits(1), table.rows.weight[TOKENS[1, :-1]])
