"""A model that is optimized while it loads is what loading and then optimizing gives, in the memory of the result."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import inference_pio
from inference_pio import get_model_optimization_status, get_optimization_manager, load_pretrained
from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import GlobalOptimizationProfile, config_manager, family_of_model, get_config_manager
from inference_pio.contract.optimization import OptimizationInterface, OptimizationType, Stage
from inference_pio.contract.site import Site
from inference_pio.errors import (
    CorruptFile,
    DiskFull,
    InvalidModel,
    InvalidSetting,
    PlanError,
    SourceError,
    UnknownName,
)
from inference_pio.integration.targets import Changes, changed, profile_target
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.sources.folder import read_folder
from inference_pio.streaming.arrival import Arrivals
from inference_pio.streaming.awaiting import await_weights
from inference_pio.streaming.hooks import true_values
from inference_pio.undo import vault
from inference_pio.undo.parked import bytes_of
from inference_pio.undo.slots import tensors_of
from tests.model_folder import write_model_folder
from tests.quality import reference_models as reference
from tests.streaming.help import run

IDS = torch.arange(3, 40)[None]
INT8 = {"tensor_compression": {"format": "int8"}}
STREAMED = {"host_budget": "88%"}


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    with true_values(model):
        every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in every}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """The same modules with the same bits, laid out alike, and the same ties and logits."""
    assert [(path, type(part)) for path, part in one.named_modules()] == [
        (path, type(part)) for path, part in other.named_modules()
    ]
    ours, theirs = values(one), values(other)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (
            theirs[name].dtype, theirs[name].shape, theirs[name].stride()
        ), name  # fmt: skip
        assert torch.equal(bytes_of(tensor), bytes_of(theirs[name])), name
    assert len(list(one.parameters())) == len(list(other.parameters()))
    with torch.no_grad():
        assert torch.equal(one(input_ids=IDS).logits, other(input_ids=IDS).logits)


def told(model: nn.Module) -> list[dict[str, Any]]:
    """What receipts say, without seconds and without where originals are."""
    left_out = ("seconds", "originals", "held_bytes", "parked_bytes", "notes")
    receipts = [receipt.to_json() for receipt in get_optimization_manager().get_receipts(model)]
    return [{key: value for key, value in receipt.items() if key not in left_out} for receipt in receipts]


def both(name: str, profile: str | None = None, **given: Any) -> tuple[Any, Any]:
    """A reference model optimized while it loads, and one loaded and then optimized."""
    loaded = load_pretrained(reference.FOLDER / name, profile, dtype=torch.bfloat16, progress=False, **given)
    whole, manager = reference.load(name), get_optimization_manager()
    changes = Changes(parameters=given.get("parameters", {}))
    kind = family_of_model(whole), changes, model_type_of(whole), given.get("hardware", "cpu")
    members = profile_target(profile, *kind) if profile else list(changed({}, changes).values())
    if "host_budget" in given:
        members = [member for member in members if member.name != "disk_offloading"]
        members.append(manager.wanted("disk_offloading", {"host_budget": given["host_budget"]}))
    if members:
        manager.set_target(whole, members, profile=profile)
    return loaded, whole


NOW = ("qwen3_moe", "glm4_moe_lite", "qwen3_vl")
SOME_NOW = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in NOW else [pytest.mark.slow]) for name in reference.NAMES]
)
"""Experts, latents and pictures in `make test`; all of them in `make verify`."""

# ------------------------------------------------------------------ the same as loading whole


@pytest.mark.parametrize("name", reference.NAMES)
def test_a_plain_model_is_the_librarys(name: str) -> None:
    loaded, whole = both(name)
    assert_same(loaded, whole)
    assert loaded.config.to_dict() == whole.config.to_dict()
    assert loaded.generation_config.to_dict() == whole.generation_config.to_dict()


@SOME_NOW
def test_int8_within_a_budget_is_what_optimizing_gives_and_goes_back_exactly(name: str) -> None:
    loaded, whole = both(name, parameters=INT8, **STREAMED)
    assert [one["name"] for one in told(loaded)] == ["tensor_compression", "disk_offloading"]
    assert told(loaded) == told(whole)
    assert_same(loaded, whole)
    receipts = get_optimization_manager().get_receipts(loaded)
    assert receipts[0].originals == str((reference.FOLDER / name / "model.safetensors").absolute())
    inference_pio.restore(loaded)
    assert_same(loaded, reference.load(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize("profile", ["lossless", "balanced", "performance", "memory_efficient"])
def test_every_profile_is_what_optimizing_gives_and_goes_back_exactly(name: str, profile: str) -> None:
    loaded, whole = both(name, profile)
    assert told(loaded) == told(whole)
    assert_same(loaded, whole)
    inference_pio.restore(loaded)
    assert_same(loaded, reference.load(name))


def test_a_profile_within_a_budget_and_its_changes_afterwards() -> None:
    loaded, whole = both("qwen3_moe", "memory_efficient", **STREAMED)
    assert told(loaded) == told(whole)
    assert_same(loaded, whole)
    for model in (loaded, whole):
        inference_pio.update_model_optimization(model, "disk_offloading", enabled=False)
        inference_pio.update_model_optimization(model, "tensor_compression", True, {"format": "int8"})
    assert told(loaded) == told(whole)
    assert_same(loaded, whole)
    assert get_model_optimization_status(loaded).keys() == get_model_optimization_status(whole).keys()


def test_a_profile_is_that_of_the_hardware_and_its_guard_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    loaded, whole = both("qwen3", "performance", hardware="hopper")
    assert told(loaded) == told(whole) != told(both("qwen3", "performance")[0])
    manager = get_config_manager()
    manager.register_profile(GlobalOptimizationProfile(name="bound", default_settings=dict(INT8), max_kl=0.2))
    try:
        load_pretrained(reference.FOLDER / "qwen3", "bound", progress=False)
    finally:
        config_manager._shared.cache_clear()
    assert "the quality guard of profile 'bound' was not asked" in caplog.text


REGISTRY = get_optimization_manager().registry
READS_FEW = [name for name in REGISTRY.names() if REGISTRY.create(name).weights_read != "all"]
"""A stand-in that one of these would read is not-a-number, so the models would not be the same."""


@pytest.mark.parametrize("name", READS_FEW)
@pytest.mark.parametrize("kind", [pytest.param("qwen3", marks=pytest.mark.slow), "glm4_moe_lite"])
def test_what_claims_to_read_few_weights_does_the_same_on_a_model_that_loads(
    name: str, kind: str, tmp_path: Path
) -> None:
    folder = write_model_folder(tmp_path / "model", kind, tokenizer=False)
    given = {name: dict(REGISTRY.get(name).on_small_models)}
    loaded, whole = load_pretrained(folder, parameters=given, progress=False), read_folder(folder).model
    for tensor in whole.parameters():  # in a mapped file they lie at addresses for which products take other kernels
        tensor.data = tensor.data.clone()
    get_optimization_manager().apply_optimizations(whole, [name], parameters=given)
    assert told(loaded) == told(whole)
    assert [one["name"] for one in told(loaded)] == [name]
    assert_same(loaded, whole)


class Loud(OptimizationInterface):
    """An outsider's: where it acts depends on weights, which a plan on a skeleton has not."""

    name = "loud"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.COMPUTATION

    def sites(self, model: nn.Module) -> list[Site]:
        norms = {path: part.weight for path, part in model.named_modules() if path.endswith("layernorm")}
        sizes = {path: weight.float().sum().item() for path, weight in norms.items() if not weight.is_meta}
        quiet = [path for path, size in sizes.items() if size < max(sizes.values())]
        return [Site(path, "norm", skip="it is quiet" if path in quiet else None) for path in norms]

    def apply(self, model: nn.Module) -> nn.Module:
        for site in self.step.sites:
            self.journal.set(model.get_submodule(site.path), "loud", True)
        return model


def test_what_looks_at_weights_for_its_places_finds_them() -> None:
    REGISTRY.register(Loud)
    try:
        loaded, whole = both("qwen3", parameters={"loud": {}})
    finally:
        REGISTRY.unregister("loud")
    assert told(loaded) == told(whole)
    assert "it is quiet" in str(told(loaded))


def test_another_dtype_than_the_stored_one() -> None:
    folder = reference.FOLDER / "qwen3"
    loaded = load_pretrained(folder, dtype=torch.float32, progress=False, parameters=INT8, host_budget="80%")
    whole = reference.load("qwen3", torch.float32)
    given = INT8 | {"disk_offloading": {"host_budget": "80%"}}
    get_optimization_manager().apply_optimizations(whole, list(given), parameters=given)
    assert told(loaded) == told(whole)
    assert_same(loaded, whole)
    inference_pio.restore(loaded)
    assert_same(loaded, reference.load("qwen3", torch.float32))


def test_two_threads_load_at_once() -> None:
    def load(name: str) -> Any:
        return load_pretrained(reference.FOLDER / name, dtype=torch.bfloat16, progress=False, parameters=INT8)

    names = ("qwen3", "glm4_moe_lite")  # one whose head is tied, one whose is not
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(load, names))
    for name, loaded in zip(names, found, strict=True):
        inference_pio.restore(loaded)
        assert_same(loaded, reference.load(name))


def test_a_budget_with_room_for_all_leaves_a_plain_model() -> None:
    loaded = load_pretrained(reference.FOLDER / "qwen3", host_budget="1GB", dtype=torch.bfloat16, progress=False)
    assert told(loaded) == []
    assert_same(loaded, reference.load("qwen3"))


def test_the_bar_tells_how_fast_bytes_come(capsys: pytest.CaptureFixture[str]) -> None:
    load_pretrained(reference.FOLDER / "qwen3")
    shown = capsys.readouterr().err
    assert "loading qwen3" in shown
    assert "B/s" in shown


@pytest.mark.gpu
@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(
    "given", [{}, {"parameters": INT8}, {"gpu_budget": "88%"}, {"parameters": INT8, "gpu_budget": "88%"}]
)
def test_on_a_gpu_too(name: str, given: dict[str, Any]) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    folder = reference.FOLDER / name
    loaded = load_pretrained(folder, device="cuda", dtype=torch.bfloat16, progress=False, **given)
    peak = torch.cuda.max_memory_allocated() - before
    whole, manager = reference.load(name).to("cuda"), get_optimization_manager()
    members = [manager.wanted(one, parameters) for one, parameters in given.get("parameters", {}).items()]
    if "gpu_budget" in given:
        members.append(manager.wanted("disk_offloading", {"gpu_budget": given["gpu_budget"]}))
    if members:
        manager.set_target(whole, members)
    assert told(loaded) == told(whole)
    ours, theirs = values(loaded), values(whole)
    assert all(torch.equal(bytes_of(tensor), bytes_of(theirs[key])) for key, tensor in ours.items())
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS.cuda()).logits, whole(input_ids=IDS.cuda()).logits)
    plain_model = reference.load(name)
    blocks = sum(1 for _ in plain_model.parameters()) * 1024  # the allocator hands out blocks of 512 bytes
    layers = [part for part in plain_model.modules() if type(part).__name__.endswith("DecoderLayer")]
    largest = max(sum(tensor.nbytes for tensor in layer.parameters()) for layer in layers)
    rounding = 16 * max(part.weight.numel() for part in plain_model.modules() if isinstance(part, nn.Linear))
    assert peak <= tensor_bytes(loaded) + largest + blocks + rounding * ("parameters" in given)
    inference_pio.restore(loaded)
    plain = values(plain_model)
    assert all(torch.equal(tensor.cpu(), plain[key]) for key, tensor in values(loaded).items())


# ------------------------------------------------------------------ refused before anything is read


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*given: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(Arrivals, "_landed", read)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"host_budget": "10%"}, PlanError, "cannot be loaded within the budget: the budget is .* always stay"),
        ({"host_budget": "80%", "profile": "lossless"}, PlanError, "kernel_fusion would have the whole model in"),
        (
            {"host_budget": "80%", "parameters": {"tensor_decomposition": {"refuse_slower": False}}},
            PlanError,
            "tensor_decomposition would have the whole model",
        ),
        ({"gpu_budget": "1GB", "device": "cpu"}, InvalidSetting, "gpu_budget is for models on a GPU"),
        ({"device": "meta"}, InvalidSetting, "a CPU or an NVIDIA GPU, not on meta"),
        ({"dtype": torch.int8}, InvalidSetting, "give 'auto' or a floating-point"),
        ({"parameters": {"tensor_compression": {"format": "int5"}}}, InvalidSetting, "int5"),
        ({"profile": "fast"}, UnknownName, "fast"),
        ({"optimizations": "flash_attention"}, InvalidSetting, "must be a list of optimization names"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_read(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load_pretrained(reference.FOLDER / "qwen3", progress=False, **given)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"profile": "fast"}, UnknownName, "fast"),
        ({"profile": "balanced", "family": "queen"}, UnknownName, "queen"),
        ({"hardware": "abacus"}, UnknownName, "abacus"),
        ({"optimizations": ["flash_attenton"]}, UnknownName, "flash_attenton"),
        ({"parameters": {"tensor_compression": {"fromat": "int8"}}}, UnknownName, "fromat"),
        ({"host_budget": "12XB"}, InvalidSetting, "12XB"),
    ],
)
def test_what_is_not_known_is_told_before_a_source_is_looked_for(
    given: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        load_pretrained(tmp_path / "nowhere", progress=False, **given)


def test_a_folder_that_save_wrote_is_told(tmp_path: Path) -> None:
    inference_pio.save(load_pretrained(reference.FOLDER / "qwen3", parameters=INT8, progress=False), tmp_path / "saved")
    with pytest.raises(SourceError, match=r"optimized already: inference_pio\.load opens it"):
        load_pretrained(tmp_path / "saved", progress=False)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("parameters", [{}, INT8])
def test_weights_that_no_memory_is_there_for_are_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, parameters: Any
) -> None:
    monkeypatch.setattr("inference_pio.integration.loading.memory_limit_bytes", lambda: 500_000)
    with pytest.raises(PlanError, match=r"the weights would take \d.* MB, and cpu has 500\.0 kB: give a budget"):
        load_pretrained(reference.FOLDER / "qwen3", parameters=parameters, progress=False)


def test_a_step_that_needs_all_weights_before_they_shrink_is_told(caplog: pytest.LogCaptureFixture) -> None:
    given = INT8 | {"model_surgery": {"edits": ["patch_linear"]}}
    load_pretrained(reference.FOLDER / "qwen3_vl", parameters=given, progress=False)
    assert "all weights are in memory for model_surgery, before tensor_compression" in caplog.text


# ------------------------------------------------------------------ a loading that fails leaves nothing behind


def left_open() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_weights_that_cannot_be_rounded_end_it(tmp_path: Path, own_cache: Path) -> None:
    folder = shutil.copytree(reference.FOLDER / "qwen3", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    gc.collect()
    before = left_open()
    with pytest.raises(InvalidModel, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds NaN"):
        load_pretrained(folder, parameters=INT8, progress=False, **STREAMED)
    gc.collect()
    assert left_open() == before
    assert not list((own_cache / "undo").glob("undo-*"))


def test_a_disk_without_room_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vault, "SPARE_DISK_BYTES", 2**60)
    with pytest.raises(DiskFull, match="no room to park"):
        load_pretrained(reference.FOLDER / "qwen3", parameters=INT8, progress=False, **STREAMED)


def test_a_file_that_is_cut_short_meanwhile_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = shutil.copytree(reference.FOLDER / "qwen3", tmp_path / "model")
    bring = Arrivals.bring

    def cut(self: Arrivals, *given: Any, **how: Any) -> None:
        bring(self, *given, **how)
        os.truncate(folder / "model.safetensors", 200_000)

    monkeypatch.setattr(Arrivals, "bring", cut)
    with pytest.raises(CorruptFile, match="cannot be read to their end"):
        load_pretrained(folder, parameters=INT8, progress=False)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        load_pretrained(tmp_path, progress=False)


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("name", [pytest.param("qwen3", marks=pytest.mark.slow), "qwen3_moe"])
@pytest.mark.parametrize("given", [{}, {"parameters": INT8}, STREAMED, {"parameters": INT8, **STREAMED}])
def test_no_more_than_the_result_and_one_layer_is_ever_in_the_model(
    name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peak, models, bring = [0], [], Arrivals.bring

    def counted(self: Arrivals, *args: Any, **how: Any) -> None:
        bring(self, *args, **how)
        tensors = {one.untyped_storage().data_ptr(): one for one in tensors_of(models[0])}
        peak[0] = max(peak[0], sum(one.untyped_storage().nbytes() for one in tensors.values()))

    def found(*args: Any) -> int:
        models.append(args[0])
        return await_weights(*args)

    monkeypatch.setattr(Arrivals, "bring", counted)
    monkeypatch.setattr("inference_pio.integration.loading.await_weights", found)
    model = load_pretrained(reference.FOLDER / name, progress=False, **given)
    layer = max(sum(tensor.nbytes for tensor in part.parameters()) for part in reference.load(name).model.layers)
    assert peak[0] <= tensor_bytes(model) + layer
    if given:
        assert peak[0] < tensor_bytes(reference.load(name))


PEAKS = """
import gc, json, re, sys, threading, time
import torch
from inference_pio import get_optimization_manager, load_pretrained
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.plan.skeleton import tensor_bytes

def now():  # what is this process's own: the page cache, and files that are mapped, are not
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

small, large = sys.argv[1:3]
ids = torch.arange(8)[None]
for given in map(json.loads, sys.argv[3:]):
    passes = given.pop("passes", 0)
    without = {key: value for key, value in given.items() if key != "host_budget"}
    first = load_pretrained(small, progress=False, **without)
    first(input_ids=ids)
    del first
    return_freed_memory()
    before, peak, done = now(), 0, threading.Event()
    def watch():
        global peak
        while not done.is_set():
            peak = max(peak, now())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_pretrained(large, progress=False, **given)
    with torch.no_grad():
        for _ in range(passes):
            model(input_ids=ids)
    done.set()
    watcher.join()
    decided = [one.decision.get("memory_bytes") for one in get_optimization_manager().get_receipts(model)]
    print(json.dumps({"peak": peak - before, "weights": tensor_bytes(model), "planned": decided[-1:] and decided[-1]}))
    del model
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A checkpoint, the bytes of its weights, and those of one layer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=4096, hidden_size=768, intermediate_size=3072, num_hidden_layers=16, num_attention_heads=12,
        num_key_value_heads=4, head_dim=64, tie_word_embeddings=True, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        bare = Qwen3ForCausalLM(config)
    model = bare.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        tensor.data.view(torch.int16).random_(0x3C00, 0x3D00, generator=generator)
    folder = tmp_path_factory.mktemp("large") / "model"
    model.save_pretrained(folder, max_shard_size="50MB")
    layer = sum(tensor.nbytes for tensor in model.model.layers[0].parameters())
    return folder, sum(tensor.nbytes for tensor in model.parameters()), layer


ROUNDING_BYTES = 3 * 4 * 4 * 2**20
"""Rounding works on so many numbers of a weight at one time, however large it is: three times in float32."""


def peaks(folders: tuple[Path, Path], *asked: dict[str, Any]) -> list[dict[str, int]]:
    found = run(PEAKS, *folders, *map(json.dumps, asked))
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is told by /proc")
def test_the_peak_within_a_budget_is_the_plans_and_one_layer(
    large_folder: tuple[Path, int, int], tmp_path: Path
) -> None:
    folder, whole, layer = large_folder
    small = write_model_folder(tmp_path / "small", "qwen3", tokenizer=False)
    (found,) = peaks((small, folder), {"parameters": INT8, "host_budget": "50%"})
    assert found["weights"] == pytest.approx(found["planned"], rel=0.001)
    assert found["planned"] < 0.35 * whole
    assert found["peak"] <= found["planned"] + layer + ROUNDING_BYTES < 0.6 * whole


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is told by /proc")
def test_a_model_that_streams_takes_what_its_plan_foretold(large_folder: tuple[Path, int, int], tmp_path: Path) -> None:
    """While it loads and computes, within 3%; what computing takes is what it takes where all weights are in memory."""
    small = write_model_folder(tmp_path / "small", "qwen3", tokenizer=False)
    asked = ({"passes": 3}, {"passes": 3, "host_budget": "50%"}, {"passes": 3, "host_budget": "75%"})
    resident, *streamed = (peaks((small, large_folder[0]), one)[0] for one in asked)  # each in a process of its own
    computing = resident["peak"] - resident["weights"]
    for one in streamed:
        assert one["peak"] - computing == pytest.approx(one["planned"], rel=0.03)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is told by /proc")
def test_the_peak_is_the_result_and_one_layer(large_folder: tuple[Path, int, int], tmp_path: Path) -> None:
    folder, whole, layer = large_folder
    small = write_model_folder(tmp_path / "small", "qwen3", tokenizer=False)
    plain, int8, streamed = peaks((small, folder), {}, {"parameters": INT8}, {"host_budget": "50%"})
    assert plain["weights"] >= whole
    assert plain["peak"] <= plain["weights"] + layer
    assert streamed["peak"] <= streamed["planned"] + layer
    assert int8["peak"] <= int8["weights"] + layer + ROUNDING_BYTES < 0.8 * whole
