"""Sensitivity: the measured loss of the coarsest form, and of finer ones what their products tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.walk import experts, linears
from inference_pio.calibration import sensitivity
from inference_pio.calibration.candidates import choices_of, form_of
from inference_pio.calibration.held_out import HeldOut
from inference_pio.calibration.sensitivity import with_losses
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj")


def source(windows: int = 8, length: int = 32) -> CalibrationSource:
    ids = torch.randint(1, 120, (windows, length), generator=torch.Generator().manual_seed(0))
    return CalibrationSource("ids", tuple({"input_ids": row[None]} for row in ids))


def choices_in(model: nn.Module, paths: tuple[str, ...] = PATHS) -> dict[str, Any]:
    return {path: choices_of(model.get_submodule(path)) for path in paths}


def divergence_with(model: nn.Module, path: str, name: str, group: int, held_out: HeldOut) -> float:
    module = model.get_submodule(path)
    with stood_in(model, {path: form_of(name, group, module).nearest(module)}):
        return held_out.divergence(model)


def test_the_coarsest_form_is_measured_and_nothing_is_edited() -> None:
    model, text, told = tiny.build("llama"), source(), list[str]()
    before, held_out = fingerprint(model), HeldOut(model, text)
    found = with_losses(model, choices_in(model), text, held_out, lambda stage, share: told.append(stage))
    assert before.differences(fingerprint(model)) == []
    assert set(told) == {"calibration", "sensitivity"}
    for path in PATHS:
        coarsest = found[path][0]
        measured = divergence_with(model, path, coarsest.format, coarsest.group, held_out)
        assert coarsest.loss == pytest.approx(measured, rel=1e-9)
        assert found[path][-1].loss == 0.0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_finer_forms_lose_about_what_they_are_measured_to_lose(name: str) -> None:
    """In float32 even int8 can be measured: that is what the Gram matrices stand for."""
    model, text = tiny.build(name), source()
    held_out = HeldOut(model, text)
    paths = tuple(path for path, _, role in linears(model) if role in ("attention.qkv", "mlp.gate_up"))[:4]
    found = with_losses(model, choices_in(model, paths), text, held_out)
    for path, of_layer in found.items():
        for one in of_layer[1:-1]:
            measured = divergence_with(model, path, one.format, one.group, held_out)
            assert one.loss == pytest.approx(measured, rel=0.5), (path, one)


def test_inputs_are_what_tells_forms_apart() -> None:
    """A layer whose inputs lie in one group: the steps of the other group cost nothing."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        layer.weight[:, :32] *= 50  # coarse steps in groups of 64, and no inputs of their own
    model = nn.Sequential(layer)
    rows = torch.randn(4, 1, 64, generator=torch.Generator().manual_seed(1))
    rows[..., :32] = 0
    text = CalibrationSource("rows", tuple({"input": row} for row in rows))
    found = with_losses(model, {"0": choices_of(layer)}, text, HeldOut(model, text))["0"]
    assert [str(one) for one in found[:2]] == ["int4, 64", "int4, 32"]
    assert found[1].loss < 0.01 * found[0].loss


def test_experts_count_by_what_was_routed_to_them() -> None:
    config = tiny.CONFIGS["qwen3_moe"]()
    config.moe_intermediate_size = 64
    model, text = tiny.build("qwen3_moe", config=config), source()
    path = next(path for path, _, _ in experts(model))
    found = with_losses(model, choices_in(model, (path,)), text, HeldOut(model, text))[path]
    assert [str(one) for one in found] == ["int4, 64", "int4, 32", "int8", "kept"]
    assert found[0].loss > found[1].loss > found[-2].loss > 0


def test_layers_without_a_choice_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = tiny.build("llama"), source()
    alone = {PATHS[0]: choices_of(model.get_submodule(PATHS[0]), ("int8", 0))}
    monkeypatch.setattr(sensitivity, "collect_inputs", lambda *_, **__: 1 / 0)
    assert with_losses(model, alone, text, HeldOut(model, text)) == alone


def test_a_layer_that_changes_nothing_loses_nothing() -> None:
    model, text = tiny.build("llama"), source()
    with torch.no_grad():
        model.get_submodule(PATHS[0]).weight.zero_()
    found = with_losses(model, choices_in(model), text, HeldOut(model, text))
    assert {one.loss for one in found[PATHS[0]]} == {0.0}
