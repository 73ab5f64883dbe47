"""A loaded model answers bit for bit as the saved one, in a fresh process, without the original."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inference_pio.artifact import load, save
from inference_pio.artifact.manifest import FILE, TENSORS
from inference_pio.errors import ArtifactError, InferencePioError, InvalidModel, InvalidSetting
from inference_pio.manager import get_optimization_manager
from tests import tiny
from tests.sweep import TOGETHER, Case

ON_EACH_MODEL = pytest.mark.parametrize("name", list(tiny.TINY))


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Case, torch.Tensor]:
    case = Case(name, dtype)
    names = [one for one in TOGETHER if case.apply(one)]
    assert names
    save(case.model, folder)
    return case, tiny.logits(case.model, name)


@ON_EACH_MODEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_equal_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    case, answers = saved(name, tmp_path / "saved", dtype)
    again = load(tmp_path / "saved", model=tiny.build(name, dtype) if name == "plain" else None)
    assert torch.equal(tiny.logits(again, name), answers)
    assert sorted(get_optimization_manager().get_model_optimizations(again)) == sorted(
        case.manager.get_model_optimizations(case.model)
    )
    assert list(again.state_dict()) == list(case.model.state_dict())


def test_a_fresh_process_gives_the_same_bits(tmp_path: Path) -> None:
    _, answers = saved("qwen3", tmp_path / "saved")
    code = (
        "import sys, torch; from safetensors.torch import save_file;"
        "from inference_pio import load; from tests import tiny;"
        "torch.set_num_threads(int(sys.argv[3]));"
        "save_file({'logits': tiny.logits(load(sys.argv[1]), 'qwen3')}, sys.argv[2])"
    )
    given = [str(tmp_path / "saved"), str(tmp_path / "out.safetensors"), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", code, *given], check=True, cwd=Path(__file__).parents[2])
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "out.safetensors")["logits"], answers)


def test_what_configurations_said_apart_is_found_where_modules_share_one_again(tmp_path: Path) -> None:
    """Surgery takes a layer away and gives the other a configuration of its own; rebuilt, there is but one layer."""
    case = Case("glm4_moe_lite")
    case.manager.set_target(case.model, ["model_surgery", "structured_pruning"])
    told = case.manager.get_receipts(case.model)[1].decision["configuration"]
    assert "model.layers.0.self_attn.config.intermediate_size" in told
    again = load(save(case.model, tmp_path / "saved"))
    assert torch.equal(tiny.logits(again, case.name), tiny.logits(case.model, case.name))
    assert again.config.intermediate_size == told["config.intermediate_size"]


def test_a_loaded_model_says_that_its_originals_are_not_here(tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    model = load(tmp_path / "saved")
    manager = get_optimization_manager()
    assert manager.get_optimization_status(model)["reversible"].startswith("no: originals not here")
    manager.remove_optimizations(model)
    assert manager.get_model_optimizations(model) == ["tensor_compression"]


def test_with_the_checkpoint_at_hand_a_loaded_model_can_be_taken_back(tmp_path: Path) -> None:
    case = Case("llama")
    case.model.save_pretrained(tmp_path / "original")
    case.apply(*TOGETHER)
    save(case.model, tmp_path / "saved")
    answers = tiny.logits(case.model, "llama")
    model = load(tmp_path / "saved", checkpoint=tmp_path / "original")
    assert torch.equal(tiny.logits(model, "llama"), answers)
    manager = get_optimization_manager()
    assert manager.get_optimization_status(model)["reversible"] == "yes"
    manager.remove_optimizations(model)
    assert torch.equal(tiny.logits(model, "llama"), case.logits)


def test_another_checkpoint_is_not_taken_for_the_original(tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    tiny.build("llama", seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError, match="is not the model"):
        load(tmp_path / "saved", checkpoint=tmp_path / "other")


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_tensor_file_is_told(harm: str, tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    file = tmp_path / "saved" / TENSORS
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    {
        "flip": lambda: file.write_bytes(raw),
        "truncate": lambda: file.write_bytes(raw[:-100]),
        "remove": file.unlink,
        "empty": lambda: file.write_bytes(b""),
    }[harm]()
    with pytest.raises(ArtifactError, match=r"[Ss]ave the model again"):
        load(tmp_path / "saved")
    if harm != "flip":
        with pytest.raises(ArtifactError):
            load(tmp_path / "saved", verify=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_class": "Popen"}, "not a model class"),
        ({"model_class": "Trainer"}, "not a model class"),
        ({"steps": []}, "do not match"),
    ],
)
def test_a_manifest_that_does_not_fit_builds_nothing(change: dict[str, object], said: str, tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    file = tmp_path / "saved" / FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ArtifactError, match=said):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["receipts"][0].pop("stage"),
        lambda d: d["receipts"][0].pop("sites"),
        lambda d: d["receipts"][0].update(skipped=3),
        lambda d: d["ties"].update({"model.norm.weight": "nowhere"}),
        lambda d: d["steps"][0].update(sites=["model.nowhere"]),
        lambda d: d.clear(),
    ],
)
def test_a_damaged_manifest_is_one_typed_error(damage: Any, tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    file = tmp_path / "saved" / FILE
    document = json.loads(file.read_text())
    damage(document)
    file.write_text(json.dumps(document))
    with pytest.raises(ArtifactError):
        load(tmp_path / "saved")


@pytest.mark.parametrize("name", [FILE, "config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"max_new_tokens": -4, "num_attention_heads": 0}', "\x00"])
def test_a_damaged_configuration_is_one_typed_error(name: str, text: str, tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    (tmp_path / "saved" / name).write_text(text)
    with pytest.raises(ArtifactError):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"device": "moon"}, InvalidSetting),
        ({"device": 3.5}, InvalidSetting),
        ({"model": "llama"}, InvalidModel),
        ({"checkpoint": 3}, InvalidSetting),
    ],
)
def test_what_is_no_device_model_or_folder_is_told(how: Any, error: type[Exception], tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    with pytest.raises(error):
        load(tmp_path / "saved", **how)
    with pytest.raises(InvalidSetting):
        load(None)  # type: ignore[arg-type]


def test_an_unknown_step_is_named(tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    file = tmp_path / "saved" / FILE
    file.write_text(file.read_text().replace('"tensor_compression"', '"tensor_compresion"'))
    with pytest.raises(InferencePioError, match="tensor_compression"):
        load(tmp_path / "saved")


def test_settings_that_are_refused_by_now_are_told_with_the_way_out(tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    file = tmp_path / "saved" / FILE
    manifest = json.loads(file.read_text())
    manifest["steps"][0]["parameters"]["least_share"] = 2.0
    file.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"tensor_compression was saved with settings .* Save the model again"):
        load(tmp_path / "saved")


def test_a_model_of_ones_own_needs_an_instance_for_its_structure(tmp_path: Path) -> None:
    saved("plain", tmp_path / "saved")
    with pytest.raises(ArtifactError, match=r"load\(folder, model=\.\.\.\)"):
        load(tmp_path / "saved")


def test_tensors_of_other_names_or_shapes_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path / "saved")
    save_file({"model.embed_tokens.weight": torch.zeros(3)}, tmp_path / "saved" / TENSORS)
    with pytest.raises(ArtifactError, match="do not match"):
        load(tmp_path / "saved", verify=False)
