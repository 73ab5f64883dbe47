"""Layers stream within a budget, bit for bit; what cannot be is refused in numbers, and nothing is left behind."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from inference_pio.errors import (
    DiskFull,
    InvalidSetting,
    ModelDrift,
    NoEffect,
    StorageError,
    StreamError,
)
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.memory.disk_offloading import DiskOffloading
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.sources.demo import demo_folder
from inference_pio.streaming import store as store_module
from inference_pio.streaming.hooks import stream_of
from inference_pio.streaming.open_file import OpenFile
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.quality import reference_models as reference
from tests.streaming.help import flip, run
from tests.streaming.mixture import mixture
from tests.sweep import Case, in_its_turn, rotating, turn_of_this_commit

NAME = "disk_offloading"


def apply(model: nn.Module, **parameters: Any) -> ModularOptimizationManager:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, [NAME], parameters={NAME: {"host_budget": "80%", **parameters}})
    return manager


def receipt_of(manager: ModularOptimizationManager, model: nn.Module) -> Any:
    return manager.get_receipts(model)[0]


# ------------------------------------------------------------------ budgets


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("budget", ["95%", "80%"])
def test_the_same_bits_come_out_within_the_budget(name: str, budget: str) -> None:
    case = Case(name)
    manager = apply(case.model, host_budget=budget)
    receipt = receipt_of(manager, case.model)
    assert receipt.decision["memory_bytes"] <= receipt.decision["budget_bytes"] < receipt.weight_bytes_before
    stand_ins = sum(len(unit.tensors) for unit in stream_of(case.model).units) * 4
    assert tensor_bytes(case.model) == receipt.decision["memory_bytes"] + stand_ins == receipt.weight_bytes_after
    assert torch.equal(tiny.logits(case.model, name), case.logits)
    manager.remove_optimizations(case.model)
    case.check_untouched()


def test_what_has_room_stays_and_the_plan_says_so() -> None:
    model = tiny.build("llama")
    manager = ModularOptimizationManager()
    with pytest.raises(NoEffect, match=r"all weights \(446\.8 kB\) have room in the budget of 1\.0 MB"):
        manager.apply_optimizations(model, [NAME], parameters={NAME: {"host_budget": "1MB"}})
    with pytest.raises(NoEffect, match="all weights"):
        manager.apply_optimizations(model, [NAME])


def test_a_budget_too_small_is_refused_with_the_least_one() -> None:
    case = Case("llama")
    with pytest.raises(NoEffect, match=r"the budget is 100\.0 kB, and 67\.4 kB always stay .* the least is 193\.9 kB"):
        apply(case.model, host_budget=100_000)
    case.check_untouched()
    apply(case.model, host_budget=193_860)
    assert torch.equal(tiny.logits(case.model, "llama"), case.logits)


def test_layers_that_stay_are_skipped_with_the_reason() -> None:
    model = tiny.build("qwen3", dtype=torch.bfloat16)
    for _ in range(3):
        model.model.layers.extend(copy.deepcopy(list(model.model.layers)))
    manager = apply(model, host_budget="60%")
    receipt = receipt_of(manager, model)
    skipped = [site.path for site in receipt.sites if not site.acts]
    assert receipt.decision["resident"] == skipped
    assert len(skipped) + len(receipt.acted) == 24
    assert {site.skip for site in receipt.sites if not site.acts} == {"it stays in memory, which has room for it"}
    gaps = [int(path.rpartition(".")[2]) for path in skipped]
    assert max(right - left for left, right in itertools.pairwise(gaps)) <= 3


def test_the_limit_of_a_control_group_counts_before_a_larger_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    monkeypatch.setattr("inference_pio.optimizations.memory.disk_offloading.memory_limit_bytes", lambda: 400_000)
    manager = apply(model, host_budget="1GB")
    assert receipt_of(manager, model).decision["budget_bytes"] == 400_000
    other = tiny.build("llama")
    manager.apply_optimizations(other, [NAME], parameters={NAME: {"max_memory_ratio": 0.8}})
    assert receipt_of(manager, other).decision["budget_bytes"] == 320_000


@pytest.mark.parametrize("budget", ["much", "-1", 0, "4 GBit", True])
def test_what_is_no_budget_is_told(budget: Any) -> None:
    with pytest.raises(InvalidSetting, match="wrong settings for disk_offloading"):
        apply(tiny.build("llama"), host_budget=budget)


def test_what_has_no_layers_is_told() -> None:
    with pytest.raises(NoEffect, match="no list of layers"):
        apply(tiny.build("plain"))


@pytest.mark.parametrize(
    ("host_budget", "told"),
    [
        ("100%", "6 of 8 layers stream: 3.9 MB are copied from host memory for each pass, and"),
        (
            "20%",
            "6 of 8 layers stream: 643.7 kB are copied from host memory and 3.2 MB are read from disk for each pass",
        ),
        ("1kB", "6 of 8 layers stream: 3.9 MB are read from disk for each pass, and"),
    ],
)
def test_a_plan_tells_what_a_pass_brings_from_where(
    host_budget: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskOffloading, "beside_the_host", frozenset({"cpu"}))
    manager = ModularOptimizationManager()
    asked = {"gpu_budget": "55%", "host_budget": host_budget, "expert_slots": False}
    plan = manager.plan(mixture(layers=8), [manager.wanted(NAME, asked, order=True, source="a test")])
    note = plan.steps[0].notes[0]
    assert note.startswith(told)
    assert ("threads read" in note) == ("from disk" in note)


@pytest.mark.parametrize(
    ("build", "asked", "told"),
    [
        (lambda: tiny.build("llama"), {"gpu_budget": "1GB"}, ["gpu_budget"]),
        (lambda: tiny.build("llama"), {"expert_slots": False}, []),
        (mixture, {"gpu_budget": "1GB", "expert_slots": False}, ["gpu_budget", "expert_slots"]),
    ],
    ids=["layers", "layers and no slots", "experts"],
)
def test_what_is_for_a_gpu_alone_is_told_on_a_cpu(
    build: Callable[[], nn.Module], asked: dict[str, Any], told: list[str]
) -> None:
    model = build()
    receipt = receipt_of(apply(model, **asked), model)
    found = [note.split(" is for models on a GPU")[0] for note in receipt.notes if "is for models on a GPU" in note]
    assert found == told


# ------------------------------------------------------------------ where weights are read from


def test_a_checkpoint_is_read_in_place_and_a_second_apply_writes_nothing(llama_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    before, logits = fingerprint(model), tiny.logits(model, "llama")
    for _ in range(2):
        manager = apply(model, folder=str(tmp_path / "offload"))
        receipt = receipt_of(manager, model)
        assert receipt.originals == "the model's own files"
        assert "nothing was written" in receipt.notes[0]
        assert not (tmp_path / "offload").exists()
        assert torch.equal(tiny.logits(model, "llama"), logits)
        manager.remove_optimizations(model)
        assert before.differences(fingerprint(model)) == []


def test_another_models_folder_is_no_source(llama_folder: Path, tmp_path: Path) -> None:
    """The model says that it comes from a folder that holds another one's weights by now."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = copy.deepcopy(model)  # in memory of its own
    logits = tiny.logits(model, "llama")
    save_file({name: tensor + 1 for name, tensor in load_file(llama_folder / "model.safetensors").items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    manager = apply(model)
    assert "0 bytes of what streams is read from the model's own files" in receipt_of(manager, model).notes[0]
    assert torch.equal(tiny.logits(model, "llama"), logits)


def test_the_store_of_another_model_is_not_taken(tmp_path: Path) -> None:
    first, second = Case("llama"), tiny.build("llama", seed=1)
    logits = tiny.logits(second, "llama")
    apply(first.model, folder=str(tmp_path / "offload"))
    apply(second, folder=str(tmp_path / "offload"))
    assert torch.equal(tiny.logits(second, "llama"), logits)
    assert torch.equal(tiny.logits(first.model, "llama"), first.logits)


@pytest.mark.parametrize("verify", ["first", "always", "size"])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_way_to_verify_gives_the_same_bits(verify: str, threads: int) -> None:
    case = Case("llama")
    manager = apply(case.model, verify=verify, threads=threads)
    assert torch.equal(tiny.logits(case.model, "llama"), case.logits)
    assert f"{threads} threads" in receipt_of(manager, case.model).backend
    manager.remove_optimizations(case.model)
    case.check_untouched()


# ------------------------------------------------------------------ what may go wrong


@pytest.mark.parametrize("place", ["a link", "world-writable", "a file"])
def test_a_folder_that_others_could_fill_is_refused(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "offload"
    if place == "a link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    elif place == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    case = Case("llama")
    with pytest.raises(StorageError):
        apply(case.model, folder=str(folder))
    case.check_untouched()


def test_a_full_disk_leaves_the_model_and_the_folder_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("llama")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "SPARE_BYTES", 1 << 60)
        with pytest.raises(DiskFull, match="free some room"):
            apply(case.model, folder=str(tmp_path / "offload"))
    case.check_untouched()
    assert [path for path in (tmp_path / "offload").iterdir() if path.is_dir()] == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("llama")

    def read_only(*given: Any, **named: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        with pytest.raises(StorageError, match="Read-only file system"):
            apply(case.model, folder=str(tmp_path / "offload"))
    case.check_untouched()


@pytest.mark.parametrize("damage", ["cut short", "flipped", "gone"])
def test_damage_to_the_users_own_files_is_told_or_does_no_harm(llama_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    before, logits = fingerprint(model), tiny.logits(model, "llama")
    for parameter in model.parameters():  # out of the mapped file, which dies with the process when it is cut short
        parameter.data = parameter.data.clone()
    manager = apply(model)
    assert torch.equal(tiny.logits(model, "llama"), logits)
    if damage == "gone":
        file.unlink()
        assert torch.equal(tiny.logits(model, "llama"), logits)
    else:
        os.truncate(file, len(content) // 2) if damage == "cut short" else _flip_all(file)
        with pytest.raises(StreamError, match=damage if damage == "cut short" else "damaged"):
            tiny.logits(model, "llama")
        with pytest.raises(StreamError):
            manager.remove_optimizations(model)
        file.write_bytes(content)
    assert torch.equal(tiny.logits(model, "llama"), logits)
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def _flip_all(file: Path) -> None:
    for offset in range(10_000, file.stat().st_size, 20_000):
        flip(file, offset)


def test_data_that_somebody_gives_a_layer_that_streams_is_drift() -> None:
    case = Case("llama")
    manager = apply(case.model)
    case.model.model.layers[1].mlp.up_proj.weight.data = torch.zeros(100, 64)
    with pytest.raises(ModelDrift, match="up_proj"):
        manager.remove_optimizations(case.model)
    manager.remove_optimizations(case.model, on_drift="discard")
    case.check_untouched()


FORK = """
import os, sys
import torch
from inference_pio.errors import StreamError
from tests import tiny
from tests.optimizations.memory.test_disk_offloading import apply
torch.set_num_threads(1)
model = tiny.build("llama")
manager = apply(model)
tiny.logits(model, "llama")
child = os.fork()
if child == 0:
    try:
        tiny.logits(model, "llama")
    except StreamError as error:
        os._exit(0 if "forked" in str(error) else 2)
    os._exit(1)
status = os.waitpid(child, 0)[1]
again = tiny.logits(model, "llama")
manager.remove_optimizations(model)
print(status, torch.equal(again, tiny.logits(model, "llama")))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_is_told_and_the_parent_goes_on() -> None:
    ended = run(FORK)
    assert ended.stdout == "0 True\n", ended.stderr


LEAVE = """
import sys
from collections.abc import Callable
from pathlib import Path
from tests import tiny
from tests.optimizations.memory.test_disk_offloading import apply
model = tiny.build("llama")
apply(model, folder=sys.argv[1])
print(len(list(Path(sys.argv[1]).iterdir())))
if sys.argv[2] == "killed":
    import os
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", rotating(["at its end", "killed"], turn_of_this_commit(), 1))
def test_files_go_with_the_process_or_are_swept_by_the_next(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "offload"
    assert run(LEAVE, folder, how).stdout == "2\n"
    assert len(list(folder.iterdir())) == (2 if how == "killed" else 0)
    model = tiny.build("llama", seed=1)
    manager = apply(model, folder=str(folder))
    assert len(list(folder.iterdir())) == 2
    manager.remove_optimizations(model)
    assert list(folder.iterdir()) == []


def test_fifty_cycles_leave_no_thread_file_or_descriptor(tmp_path: Path) -> None:
    case = Case("llama", torch.bfloat16)
    process = psutil.Process()
    apply(case.model, folder=str(tmp_path / "offload")).remove_optimizations(case.model)
    gc.collect()  # what earlier tests left
    threads, files = threading.active_count(), process.num_fds()
    for _ in range(50):
        manager = apply(case.model, folder=str(tmp_path / "offload"))
        tiny.logits(case.model, "llama")
        manager.remove_optimizations(case.model)
    assert (threading.active_count(), process.num_fds()) == (threads, files)
    assert list((tmp_path / "offload").iterdir()) == []
    case.check_untouched()


def test_it_is_taken_back_while_layers_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("llama")
    manager = apply(case.model)
    read = OpenFile.read
    with monkeypatch.context() as patch:
        patch.setattr(OpenFile, "read", lambda *given: (time.sleep(0.01), read(*given)))
        tiny.logits(case.model, "llama")
        manager.remove_optimizations(case.model)
    case.check_untouched()


# ------------------------------------------------------------------ memory and speed

WITHIN = """
import sys
import psutil, torch
from transformers import AutoModelForCausalLM
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure.freed_memory import return_freed_memory
from tests import tiny
from tests.optimizations.memory.test_disk_offloading import apply
torch.set_num_threads(1)
folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
ids = torch.arange(1, 17)[None]

def resident():
    return psutil.Process().memory_info().rss

small = tiny.build("llama", dtype=dtype)  # what libraries load at the first use is not the model's
manager = apply(small)
tiny.generate(small, "llama")
manager.remove_optimizations(small)
del small
return_freed_memory()
before = resident()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
weights = sum(one.nbytes for one in model.parameters())
with torch.no_grad():
    logits = model(ids).logits
    manager = apply(model, host_budget=sys.argv[3])
    peak = 0
    def look(*given):
        global peak
        peak = max(peak, resident() - before)
    for layer in list(model.model.layers):
        layer.register_forward_hook(look)
    for _ in range(2):
        assert torch.equal(model(ids).logits, logits)
print(peak / weights, manager.get_receipts(model)[0].decision["memory_bytes"] / weights)
"""


def within(folder: Path, dtype: str, budget: str) -> tuple[float, float]:
    """The most that a process grew by while the model computed, and what was planned, as shares of its weights."""
    ended = run(WITHIN, folder, dtype, budget)
    assert ended.returncode == 0, ended.stderr
    peak, planned = map(float, ended.stdout.split())
    return peak, planned


@in_its_turn(2, of=4)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_process_keeps_to_the_budget_while_the_model_computes(tmp_path: Path, dtype: str) -> None:
    """Measured from outside, activations and reading included: 1 MB a thread and what the allocator keeps on top."""
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=1000, num_key_value_heads=8, **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "model")
    peak, planned = within(tmp_path / "model", dtype, "35%")
    if peak > 0.45:  # what the allocator keeps differs: 0.398 to 0.406 in twelve processes, 0.455 in one of a whole run
        peak, planned = within(tmp_path / "model", dtype, "35%")
    assert planned <= 0.35
    assert peak <= 0.45


@pytest.mark.network
def test_the_demo_runs_within_forty_percent_of_its_weights() -> None:
    folder = demo_folder().folder
    for dtype in ("float32", "bfloat16"):
        peak, planned = within(folder, dtype, "34%")
        assert planned <= 0.34
        assert peak <= 0.40


def test_a_slow_disk_is_hidden_behind_a_whole_models_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads take as long as layers compute: at least 80% of the shorter is hidden."""
    case = Case("llama")
    apply(case.model, threads=1)
    stream = stream_of(case.model)
    assert stream is not None
    layer_s, pieces = 0.15, len(stream._pieces[0])
    for layer in case.model.model.layers:
        layer.mlp.register_forward_hook(lambda *given: time.sleep(layer_s))
    read = OpenFile.read
    monkeypatch.setattr(OpenFile, "read", lambda *given: (time.sleep(layer_s / pieces), read(*given)))
    given = tiny.inputs("llama", case.model)
    with torch.no_grad():
        case.model(**given)
        seconds = []
        for _ in range(4):  # the best of a few: other processes share this machine
            start = time.perf_counter()
            assert torch.equal(case.model(**given).logits, case.logits[:, :-1])
            seconds.append(time.perf_counter() - start)
    hidden = 3 * 2 * layer_s - min(seconds)
    assert hidden >= 0.8 * 3 * layer_s


def test_a_trained_model_says_what_it_said(tmp_path: Path) -> None:
    model = reference.load("qwen3")
    tokens = reference.draw(0, windows=1, length=64)
    with torch.no_grad():
        logits = model(tokens).logits
        manager = apply(model, host_budget="70%")
        assert torch.equal(model(tokens).logits, logits)
    assert receipt_of(manager, model).originals == "the model's own files"
    json.dumps(manager.get_optimization_status(model))
