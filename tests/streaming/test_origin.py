"""Weights are read where the user's files have them; only others are written, and another model's are never taken."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from inference_pio.anatomy.layer_lists import listed_layers
from inference_pio.compat import hub_tensors
from inference_pio.streaming.origin import Origins, find_origins
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.units import Streamable, Unit
from inference_pio.undo.checkpoint import Checkpoint
from inference_pio.undo.survey import named_tensors
from tests import tiny


def units_of(model: torch.nn.Module) -> list[Unit]:
    streamable = Streamable(model)
    return [streamable.unit(path) for path, _, _ in listed_layers(model)]


def origins_of(model: torch.nn.Module, units: list[Unit], checkpoint: Path | None, folder: Path) -> Origins:
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    known = Checkpoint(checkpoint) if checkpoint else None
    return find_origins(units, names, known, folder, partial(hub_tensors, model))


def check(origins: Origins, units: list[Unit]) -> None:
    """Read every unit from where it was found, and compare it with the model."""
    reader = Reader(2, origins.largest_piece, verify="always")
    for number, unit in enumerate(units):
        slot = torch.zeros(unit.room, dtype=torch.uint8)
        reader.start(origins.pieces_of(number, unit), slot).wait()
        for region in unit.regions:
            assert torch.equal(slot[region.at : region.at + region.nbytes], region.raw())
    reader.close()


def test_weights_of_a_checkpoint_are_read_from_it_and_nothing_is_written(llama_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    units = units_of(model)
    origins = origins_of(model, units, llama_folder, tmp_path / "root")
    assert origins.store is None
    assert not (tmp_path / "root").exists()
    assert origins.files == [llama_folder / "model.safetensors"]
    assert origins.checkpoint_bytes == sum(region.nbytes for unit in units for region in unit.regions)
    assert origins.told == "the model's own files"
    check(origins, units)


def test_merged_weights_are_read_from_their_parts(llama_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    mlp = model.model.layers[1].mlp
    merged = torch.cat([mlp.up_proj.weight.detach(), mlp.gate_proj.weight.detach()])
    mlp.up_proj.weight.data, mlp.gate_proj.weight.data = merged[:100], merged[100:]
    units = units_of(model)
    origins = origins_of(model, units, llama_folder, tmp_path / "root")
    assert origins.store is None
    check(origins, units)


def test_only_what_no_checkpoint_has_is_written(llama_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    units = units_of(model)
    origins = origins_of(model, units, llama_folder, tmp_path / "root")
    assert origins.store is not None
    assert origins.store_bytes == 100 * 64 * 4
    assert [file.name for file in sorted(origins.store.folder.glob("layer-*"))] == ["layer-0002.weights"]
    check(origins, units)
    origins.store.close()


@pytest.mark.parametrize("other", ["another dtype", "another model", "padded memory", "no checkpoint"])
def test_what_does_not_match_to_the_bit_is_written(llama_folder: Path, tmp_path: Path, other: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    folder: Path | None = llama_folder
    if other == "another dtype":
        model = model.to(torch.bfloat16)
    elif other == "another model":
        model = tiny.build("llama", seed=1)
    elif other == "padded memory":
        for parameter in model.parameters():
            parameter.data = torch.cat([parameter.data.reshape(-1), torch.zeros(1)])[:-1].reshape(parameter.shape)
    else:
        folder = None
    units = units_of(model)
    origins = origins_of(model, units, folder, tmp_path / "root")
    assert origins.store is not None
    assert origins.checkpoint_bytes == 0
    check(origins, units)
    origins.store.close()


def test_shards_are_found_by_name(llama_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(llama_folder / "model.safetensors")
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(tensors)
    for number in range(2):
        save_file({name: tensors[name] for name in names[number::2]}, folder / f"model-{number}.safetensors")
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    units = units_of(model)
    origins = origins_of(model, units, folder, tmp_path / "root")
    assert len(origins.files) == 2
    check(origins, units)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_experts_are_read_one_by_one_from_where_the_checkpoint_has_them(name: str, tmp_path: Path) -> None:
    tiny.build(name).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert [one for one in load_file(tmp_path / "model" / "model.safetensors") if ".experts.1.up_proj" in one]
    units = units_of(model)
    origins = origins_of(model, units, tmp_path / "model", tmp_path / "root")
    assert origins.store is None
    check(origins, units)


def test_one_expert_that_is_another_puts_its_tensor_into_the_store(tmp_path: Path) -> None:
    tiny.build("qwen3_moe").save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        model.model.layers[1].mlp.experts.gate_up_proj[3, 50, 0] += 1
    units = units_of(model)
    origins = origins_of(model, units, tmp_path / "model", tmp_path / "root")
    assert origins.store_bytes == model.model.layers[1].mlp.experts.gate_up_proj.nbytes
    check(origins, units)
    assert origins.store is not None
    origins.store.close()
