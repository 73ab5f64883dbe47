"""A unit holds what one layer has to itself, as it lies; what others share, and what may learn, is left out."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from inference_pio.anatomy.layer_lists import listed_layers
from inference_pio.plan.skeleton import skeleton_of
from inference_pio.streaming.aligned import LINE, aligned_bytes
from inference_pio.streaming.units import Streamable
from inference_pio.undo.parked import View
from tests import tiny


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_a_skeleton_tells_the_same_bytes_as_the_model(name: str) -> None:
    model = tiny.build(name)
    ours, theirs = Streamable(model), Streamable(skeleton_of(model))
    assert ours.total_bytes == theirs.total_bytes
    for path, layer, _ in listed_layers(model):
        assert ours.nbytes(path) == theirs.nbytes(path) == sum(one.nbytes for one in layer.parameters())


def test_a_slot_shows_tensors_as_they_lie_in_the_model() -> None:
    model = tiny.build("llama")
    layer = model.model.layers[1]
    merged = torch.cat([layer.mlp.gate_proj.weight.detach(), layer.mlp.up_proj.weight.detach()])
    layer.mlp.gate_proj.weight.data, layer.mlp.up_proj.weight.data = merged[:100], merged[100:]
    layer.mlp.down_proj.weight.data = torch.randn(100, 64).t()
    layer.self_attn.q_proj.weight.data = aligned_bytes(64 * 64 * 4, residue=8).view(torch.float32).view(64, 64).fill_(1)
    unit = Streamable(model).unit("model.layers.1")
    slot = aligned_bytes(unit.room)
    for region in unit.regions:
        slot[region.at : region.at + region.nbytes] = region.raw()
    shown = [data for region in unit.regions for data in region.shown_in(slot)]
    for tensor, data in zip(unit.tensors, shown, strict=True):
        assert torch.equal(tensor, data)
        assert View.of(tensor) == View.of(data)
        assert tensor.data_ptr() % LINE == data.data_ptr() % LINE
    parts = dict(zip(map(id, unit.tensors), shown, strict=True))
    gate, up = parts[id(layer.mlp.gate_proj.weight)], parts[id(layer.mlp.up_proj.weight)]
    assert gate.untyped_storage().data_ptr() == up.untyped_storage().data_ptr()
    assert [region.at for region in unit.regions] == sorted(region.at for region in unit.regions)


def test_what_another_place_shares_stays() -> None:
    model = tiny.build("llama")
    first, second = model.model.layers[0], model.model.layers[1]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight  # one Parameter, two places
    memory = first.mlp.down_proj.weight.detach()
    second.mlp.down_proj.weight = nn.Parameter(memory.view(64, 100))  # two Parameters, one memory
    streamable = Streamable(model)
    kept = {id(layer.mlp.get_submodule(name).weight) for layer in (first, second) for name in ("up_proj", "down_proj")}
    for path in ("model.layers.0", "model.layers.1"):
        found = {id(tensor) for tensor in streamable.tensors_in(path)}
        assert not found & kept
        assert len(found) == 7


def test_a_tensor_with_two_names_in_one_layer_streams_once() -> None:
    model = tiny.build("llama")
    layer = model.model.layers[0]
    layer.self_attn.v_proj.weight = layer.self_attn.k_proj.weight
    assert len(Streamable(model).tensors_in("model.layers.0")) == 8


def test_adapters_and_buffers_that_a_forward_may_write_stay() -> None:
    model = tiny.build("llama")
    model.model.layers[0].register_buffer("seen", torch.zeros(3))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    path = next(path for path, _, _ in listed_layers(model) if path.endswith("layers.0"))
    found = {id(tensor) for tensor in Streamable(model).tensors_in(path)}
    names = [name for name, one in model.get_submodule(path).named_parameters() if id(one) in found]
    assert len(names) == len(found) == 9
    assert not [name for name in names if "lora" in name]
