"""Calibrated rounding: kept where held-out text bears it out, from inputs alone, with nothing edited."""

from __future__ import annotations

import pytest
import torch

from inference_pio.calibration import rounding
from inference_pio.calibration.rounding import Form, check_length, layer_of, round_calibrated
from inference_pio.calibration.source import CalibrationSource
from inference_pio.errors import InvalidSetting
from inference_pio.formats.known import format_named
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

LINEAR, EXPERTS = (getattr(format_named("int4"), kind) for kind in ("linear", "experts"))
PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.q_proj")
FORMS = {path: Form(LINEAR, 32) for path in PATHS}


def source(windows: int = 16, length: int = 32) -> CalibrationSource:
    ids = torch.randint(1, 120, (windows, length), generator=torch.Generator().manual_seed(0))
    return CalibrationSource("ids", tuple({"input_ids": row[None]} for row in ids))


def test_nothing_is_edited_and_the_choice_is_told_by_layer() -> None:
    model, told = tiny.build("llama"), list[str]()
    before = fingerprint(model)
    found = round_calibrated(model, FORMS, source(), lambda stage, share: told.append(stage))
    assert before.differences(fingerprint(model)) == []
    assert set(found.modules) == set(FORMS)
    assert set(found.kept) == {"model.layers.0", "model.layers.1"}
    assert found.divergence[1] <= found.divergence[0]
    assert set(told) == {"calibration", "held-out text"}
    data = found.to_json()
    assert sorted(data["kept"] + data["rounded_to_nearest"]) == ["model.layers.0", "model.layers.1"]
    assert data["source"]["tokens"] + data["source"]["held_out_tokens"] == 16 * 32


def test_a_layer_whose_divergence_does_not_fall_is_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    answers = iter([1.0, 2.0, 0.5])  # to nearest, then each layer's candidate: worse, better
    monkeypatch.setattr(rounding.HeldOut, "divergence", lambda *_: next(answers))
    found = round_calibrated(model, FORMS, source())
    assert found.kept == {"model.layers.0": False, "model.layers.1": True}
    for path, form in FORMS.items():
        nearest = form.nearest(model.get_submodule(path)).dequantize()
        assert torch.equal(found.modules[path].dequantize(), nearest) is not path.startswith("model.layers.1")


def test_experts_that_no_token_reaches_are_counted_and_rounded_to_nearest() -> None:
    config = tiny.CONFIGS["qwen3_moe"]()
    config.moe_intermediate_size = 64
    model = tiny.build("qwen3_moe", config=config)
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight[3:] = -100 * model.model.layers[1].mlp.gate.weight[:1].abs()
        model.model.layers[1].mlp.gate.weight[:3] = 0
    path, form = "model.layers.1.mlp.experts", Form(EXPERTS, 32)
    found = round_calibrated(model, {path: form}, source())
    assert found.unseen_experts > 0
    nearest = form.nearest(model.get_submodule(path)).dequantize()[0]
    assert torch.equal(found.modules[path].dequantize()[0][-1], nearest[-1]) or not found.kept["model.layers.1"]


def test_experts_are_rounded_alike_one_by_one_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.CONFIGS["glm4_moe"]()
    config.moe_intermediate_size = 64
    model, path, form = tiny.build("glm4_moe", config=config), "model.layers.1.mlp.experts", Form(EXPERTS, 32)
    nearest, found = form.nearest(model.get_submodule(path)).dequantize(), []
    for bytes_together in (1, 2**28):
        monkeypatch.setattr(rounding, "STACK_BYTES", bytes_together)
        falling = iter(range(9, 0, -1))
        monkeypatch.setattr(rounding.HeldOut, "divergence", lambda *_, falling=falling: next(falling))
        found.append(round_calibrated(model, {path: form}, source()).modules[path].dequantize())
    for one, other, plain in zip(*found, nearest, strict=True):
        assert (one != other).float().mean() < 0.001  # a batched factor has other last bits
        assert not torch.equal(one, plain)


@pytest.mark.parametrize(
    ("given", "said"),
    [(source(2, 20), r"leaves 20 tokens.*widest layer has 64 inputs: give 44 tokens more"), (source(1), "held out")],
)
def test_a_short_text_is_refused_before_anything_runs(given: CalibrationSource, said: str) -> None:
    model = tiny.build("llama")
    with pytest.raises(InvalidSetting, match=said):
        round_calibrated(model, FORMS, given)
    with pytest.raises(InvalidSetting, match=said):
        check_length(model, given, PATHS)


def test_layers_are_told_by_their_number() -> None:
    assert layer_of("model.layers.12.mlp.experts") == "model.layers.12"
    assert layer_of("fc1") == "fc1"
