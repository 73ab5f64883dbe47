"""Behind what is gone the stream comes nearer to what it was; the model is not edited, and odd layers are left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.removable_layers import StackLayer, stack_layers
from inference_pio.calibration.forward import forward
from inference_pio.calibration.removal import passed_over
from inference_pio.calibration.stood_in import stood_in
from inference_pio.calibration.stream_refit import refit_stream
from inference_pio.calibration.twins import twin_of
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.test_narrowed import text
from tests.quality.test_tensor_compression import in_turn

NAMES = ["llama", "qwen3", "qwen3_moe", "glm4_moe", "glm4_moe_lite"]


def layers_of(model: nn.Module) -> list[StackLayer]:
    found = stack_layers(model)
    assert not isinstance(found, str)
    return found


def stream_behind(model: nn.Module, layer: nn.Module) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda *given: rows.append(given[-1]))
    for batch in text(32, 64).batches:
        forward(model, batch)
    handle.remove()
    return torch.cat(rows)


@pytest.mark.parametrize("name", in_turn("llama", "glm4_moe_lite", among=NAMES))
def test_the_stream_comes_nearer_to_what_it_was(name: str) -> None:
    model = tiny.build(name)
    layers = layers_of(model)
    gone = layers[0].attention_path
    before = fingerprint(model)

    def changed() -> Any:
        return passed_over(model, [], {gone: None})

    weights = refit_stream(model, layers, [gone], changed, text(32, 64))
    assert before.differences(fingerprint(model)) == []
    attentions = [path for path in weights if path.endswith("o_proj")]
    assert attentions == [f"{layer.attention_path}.o_proj" for layer in layers[1:]]
    dense = [layer for layer in layers if isinstance(layer.module.mlp._modules.get("down_proj"), nn.Linear)]
    assert [path for path in weights if path not in attentions] == [f"{one.path}.mlp.down_proj" for one in dense]
    last = layers[-1].module
    wanted = stream_behind(model, last)
    twins = {path: twin_of(model.get_submodule(path), {"weight": weight}) for path, weight in weights.items()}
    with changed():
        without = (stream_behind(model, last) - wanted).norm()
        with stood_in(model, twins):
            assert (stream_behind(model, last) - wanted).norm() < 0.97 * without


def test_layers_that_are_gone_are_passed_and_what_is_not_plain_is_left() -> None:
    model = tiny.build("llama")
    layers = layers_of(model)
    down = layers[2].module.mlp.down_proj
    down.register_forward_pre_hook(lambda *_: None)
    gone = [layers[1].path]
    weights = refit_stream(model, layers, gone, lambda: passed_over(model, gone, {}), text(8, 64))
    assert set(weights) == {f"{layers[2].attention_path}.o_proj"}


def test_a_layer_that_norms_its_parts_before_adding_them_has_no_writers() -> None:
    model = tiny.build("llama")
    layers = layers_of(model)

    class Halved(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.down_proj = mlp.down_proj
            self.mlp = mlp

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(x) / 2

    layers[2].module.mlp = Halved(layers[2].module.mlp)
    gone = [layers[1].attention_path]
    weights = refit_stream(model, layers, gone, lambda: passed_over(model, [], {gone[0]: None}), text(8, 64))
    assert set(weights) == {f"{layers[1].path}.mlp.down_proj", f"{layers[2].attention_path}.o_proj"}

    @contextmanager
    def never() -> Iterator[None]:
        yield

    layers[2].module.self_attn.register_forward_hook(lambda module, args, result: (result[0] * 2, *result[1:]))
    weights = refit_stream(model, layers, gone, never, text(8, 64))
    assert set(weights) == {f"{layers[1].path}.mlp.down_proj"}


def test_what_a_layer_computes_beside_its_parts_may_have_another_shape() -> None:
    model = tiny.build("llama")
    layers = layers_of(model)
    layer: Any = layers[2].module
    layer.gate = nn.Linear(model.config.hidden_size, 5)
    layer.input_layernorm.register_forward_hook(lambda module, args, out: (layer.gate(out), out)[1])
    gone = [layers[1].path]
    weights = refit_stream(model, layers, gone, lambda: passed_over(model, gone, {}), text(8, 64))
    assert set(weights) == {f"{layers[2].attention_path}.o_proj", f"{layers[2].path}.mlp.down_proj"}


def test_writers_may_be_given_their_input_by_its_name() -> None:
    model = tiny.build("llama")
    layers, gone = layers_of(model), layers_of(model)[1].path

    def fitted() -> dict[str, torch.Tensor]:
        return refit_stream(model, layers, [gone], lambda: passed_over(model, [gone], {}), text(8, 64))

    wanted, mlp = fitted(), layers[2].module.mlp
    mlp.forward = lambda x: mlp.down_proj(input=mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    found = fitted()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[path], weight) for path, weight in wanted.items())
