from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from inference_pio.undo.fingerprint import digest, fingerprint
from tests import tiny


def note(module: nn.Module) -> nn.Module:
    """A model with something of every kind in it."""
    module.numbers = [1, {"a": 2}]
    module.table = {"x": [1], "y": torch.zeros(2)}
    module.names = {"a", "b"}
    module.register_buffer("kept", torch.zeros(3))
    module.register_parameter("none", None)
    module.register_forward_hook(lambda *given: None)
    return module


def swap(table: dict[str, Any], first: str) -> None:
    table[first] = table.pop(first)


def retie(model: nn.Module) -> None:
    model.lm_head.weight.data = model.lm_head.weight.detach().clone()
    model.model.embed_tokens.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def first_layer(model: nn.Module) -> nn.Module:
    return model.model.layers[0]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a value of a parameter": lambda m: first_layer(m).mlp.up_proj.weight.data[0].neg_(),
    "a sign of a zero": lambda m: m.kept.neg_(),
    "a buffer's object": lambda m: setattr(m, "kept", m.kept.clone()),
    "a parameter's stride": lambda m: setattr(m.lm_head.weight, "data", m.lm_head.weight.t().contiguous().t()),
    "requires_grad": lambda m: m.lm_head.weight.requires_grad_(False),
    "an attribute of a parameter": lambda m: setattr(m.lm_head.weight, "mark", 1),
    "a gradient": lambda m: setattr(m.lm_head.weight, "grad", torch.zeros_like(m.lm_head.weight)),
    "a tie": retie,
    "a module": lambda m: setattr(first_layer(m), "mlp", nn.Identity()),
    "the order of children": lambda m: swap(first_layer(m)._modules, "mlp"),
    "the order of parameters": lambda m: swap(m._buffers, "kept") or m.register_buffer("later", None),
    "a None parameter": lambda m: m._parameters.pop("none"),
    "a new attribute": lambda m: setattr(first_layer(m), "new", 1),
    "a changed attribute": lambda m: setattr(first_layer(m), "hidden_size", 1),
    "a lost attribute": lambda m: delattr(first_layer(m), "hidden_size"),
    "the order of attributes": lambda m: swap(vars(m), "numbers"),
    "the inside of a list": lambda m: m.numbers[1].update(a=3),
    "the inside of a table": lambda m: m.table["y"].add_(1),
    "a member of a set": lambda m: m.names.add("c"),
    "training mode": lambda m: first_layer(m).train(),
    "a hook": lambda m: first_layer(m).register_forward_pre_hook(lambda *given: None),
    "the container of hooks": lambda m: setattr(m, "_forward_hooks", type(m._forward_hooks)(m._forward_hooks)),
    "the container of children": lambda m: m.__dict__.update(_modules=dict(m._modules)),
    "a persistent buffer": lambda m: m._non_persistent_buffers_set.add("kept"),
    "a patched method": lambda m: setattr(m, "forward", m.forward),
    "a setting": lambda m: setattr(m.config, "use_cache", False),
    "a setting's order": lambda m: swap(vars(m.config), "use_cache"),
    "the configuration's object": lambda m: setattr(m, "config", m.config.__class__.from_dict(m.config.to_dict())),
    "a generation setting": lambda m: setattr(m.generation_config, "max_new_tokens", 5),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_kind_of_change_is_seen(kind: str) -> None:
    model = note(tiny.build("qwen3"))
    before = fingerprint(model)
    assert before.differences(fingerprint(model)) == []
    CHANGES[kind](model)
    assert before.differences(fingerprint(model)) != []
    assert before != fingerprint(model)


def test_an_inner_configuration_counts_too() -> None:
    model = tiny.build("qwen3_vl")
    before = fingerprint(model)
    model.config.vision_config.depth = 9
    assert any("configs" in place for place in before.differences(fingerprint(model)))


def test_an_edited_class_is_seen() -> None:
    class Mine(nn.Module):
        def forward(self) -> None:
            return None

    model = Mine()
    before = fingerprint(model)
    Mine.forward = lambda self: None  # type: ignore[method-assign]
    assert before.differences(fingerprint(model)) == ["modules: ''"]


def test_the_note_that_copy_leaves_on_a_class_is_no_edit() -> None:
    model = weight_norm(nn.Linear(2, 2))  # a class of its own, which nobody has copied yet
    before = fingerprint(model)
    copy.deepcopy(model)
    assert "__slotnames__" in vars(type(model))
    assert before.differences(fingerprint(model)) == []


def test_differences_name_the_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = fingerprint(model)
    with torch.no_grad():
        model[1].bias.add_(1)
    model[0].note = 1
    assert before.differences(fingerprint(model)) == ["tensors: '1.bias'", "attributes: '0'"]


def test_computing_and_generating_leave_no_trace() -> None:
    for name in ("gpt2", "qwen3_vl"):
        model = tiny.build(name)
        before = fingerprint(model)
        tiny.logits(model, name)
        if name == "gpt2":  # Qwen3-VL's own generate notes the offsets of the last image on the model
            tiny.generate(model, name)
        assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3),
        torch.tensor(1.5),
        torch.tensor([True, False]),
        torch.arange(4, dtype=torch.uint8).view(torch.float8_e4m3fn),
        torch.arange(6.0).reshape(2, 3).t(),
    ],
)
def test_a_digest_is_of_the_values_in_their_order(tensor: torch.Tensor) -> None:
    assert digest(tensor) == digest(tensor.contiguous().clone())
    assert len(digest(tensor)) == 64


def test_a_digest_tells_not_a_numbers_apart() -> None:
    one, other = torch.tensor([0x7FC00001, 0x7FC00002], dtype=torch.int32).view(torch.float32)
    assert digest(one) != digest(other)
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))
