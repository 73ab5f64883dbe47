"""The largest values of every channel: of layers, experts, attention and convolutions, the model left as found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.walk import attention_modules, experts, linears
from inference_pio.calibration.largest_values import KEPT, Largest, collect_largest
from inference_pio.calibration.source import calibration_source
from inference_pio.errors import InvalidSetting
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

ROWS = torch.tensor([[1 + (place * 7 + row) % 90 for place in range(12)] for row in range(3)])


def test_the_largest_are_kept_in_order_however_rows_come() -> None:
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    largest = Largest(3)
    for part in rows.split(37):
        largest.add(part)
    ordered = rows.abs().sort(0, descending=True).values.double()
    assert torch.equal(largest.reached(), ordered[0])
    assert torch.equal(largest.reached(but=0.02), ordered[20])
    assert torch.equal(largest.reached(but=0.5), ordered[KEPT - 1])  # no more are kept


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe_lite", "gpt2"])
def test_what_is_told_is_what_the_layers_are_given(name: str) -> None:
    model: Any = tiny.build(name)
    before, source = fingerprint(model), calibration_source(model, ROWS)
    layers = [path for path, _, role in (*linears(model), *experts(model)) if role != "head"]
    attention = [path for path, _, _ in attention_modules(model)]
    found = collect_largest(model, source, layers, attention)
    assert before.differences(fingerprint(model)) == []
    path = next(path for path, _, _ in linears(model))
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in source.batches:
        model(**batch)
    handle.remove()
    wanted = torch.cat([one.detach().flatten(0, -2) for one in seen])
    assert found[path].count == len(wanted) == ROWS.numel()
    assert torch.equal(found[path].reached().float(), wanted.abs().amax(0))
    assert {f"{attention[0]}.{side}" for side in ("query", "key", "value")} <= set(found)
    if name != "gpt2":
        where = next(path for path, _, _ in experts(model))
        inner = [found[key].count for key in found if key.startswith(f"{where}.down[")]
        assert sum(inner) == found[f"{where}.gate_up"].count == 2 * ROWS.numel()


def test_channels_of_a_convolution_are_its_input_channels() -> None:
    net, images = nn.Sequential(nn.Conv2d(3, 2, 3)), torch.randn(2, 3, 6, 6)
    found = collect_largest(net, calibration_source(net, [{"input": images}]), ["0"])
    assert torch.equal(found["0"].reached().float(), images.abs().amax((0, 2, 3)))


def test_a_layer_that_no_batch_reaches_is_named() -> None:
    net = nn.Sequential(nn.Identity())
    net.add_module("aside", nn.Linear(2, 2))
    net.forward = lambda input: input  # type: ignore[method-assign]
    with pytest.raises(InvalidSetting, match="no calibration batch reaches aside"):
        collect_largest(net, calibration_source(net, [{"input": torch.ones(1, 2)}]), ["aside"])
