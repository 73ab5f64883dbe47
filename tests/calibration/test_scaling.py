"""Scales from inputs, kept by held-out text, with nothing edited; what is left has its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.calibration import rounding, scaling
from inference_pio.calibration.fold_check import CHANGES, scales_of_modules
from inference_pio.calibration.folds import Fold, find_folds
from inference_pio.calibration.rounding import Form
from inference_pio.calibration.scaled_layer import scaled
from inference_pio.calibration.scaling import NO_GAIN, scale_calibrated
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import InvalidSetting
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.formats.known import format_named
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.test_folds import layers_of
from tests.calibration.test_rounding import source


def built(name: str) -> tuple[nn.Module, dict[str, Form]]:
    """A model whose channels are uneven, though it computes what it computed, and what its layers are to become."""
    config = tiny.CONFIGS[name]()
    if hasattr(config, "moe_intermediate_size"):
        config.moe_intermediate_size = 64
    model, known = tiny.build(name, config=config), format_named("int4")
    forms = {}
    for path in layers_of(model):
        parameters = model.get_submodule(path)._parameters
        kind = known.experts if "down_proj" in parameters else known.linear
        if all(one.shape[-1] % 32 == 0 for one in parameters.values() if one is not None and one.dim() > 1):
            forms[path] = Form(kind, 32)
    uneven(model, list(forms), tiny.inputs(name, model))
    return model, forms


def uneven(model: nn.Module, layers: list[str], batch: dict[str, torch.Tensor]) -> None:
    """Channels become up to 16 times larger and smaller than each other; answers stay."""
    chance = torch.Generator().manual_seed(0)
    folds = [fold for fold in find_folds(model, layers, batch) if not fold.left and not fold.head]
    drawn = {fold: torch.exp2(torch.randint(-2, 3, fold.channels(model), generator=chance).float()) for fold in folds}
    with torch.no_grad():
        for path, scales in scales_of_modules(drawn).items():
            twin = scaled(model.get_submodule(path), scales)
            for name, parameter in model.get_submodule(path).named_parameters(recurse=False):
                parameter.copy_(twin._parameters[name])


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "glm4_moe_lite"])
def test_nothing_is_edited_and_uneven_channels_lose_less(name: str) -> None:
    model, forms = built(name)
    before, told = fingerprint(model), list[str]()
    found = scale_calibrated(model, forms, source(), lambda stage, share: told.append(stage))
    assert before.differences(fingerprint(model)) == []
    assert found.divergence[1] < 0.7 * found.divergence[0]
    assert any(found.kept.values())
    assert set(told) == {"calibration", "held-out text"}
    data = found.to_json()
    assert data["method"] == "awq"
    assert all(0 < one["alpha"] <= 1 and one["loss"] < 1 for one in data["scales"].values())
    assert set(data["scales"]).isdisjoint(data["not_scaled"])
    assert set(forms) <= set(found.modules)
    beside = {path: one for path, one in found.modules.items() if path not in forms}
    assert beside
    assert not any(isinstance(one, CompressedModule) for one in beside.values())
    if name == "qwen3_moe" and found.kept["model.layers.1"]:
        assert "model.layers.1.mlp.gate" in beside


def test_scales_are_such_as_what_takes_them_in_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forms = built("glm4_moe")
    model.bfloat16()
    taken: dict[Fold, torch.Tensor] = {}
    monkeypatch.setattr(scaling, "scales_of_modules", lambda scales: taken.update(scales) or scales_of_modules(scales))
    scale_calibrated(model, forms, source())
    norms = [fold for fold in taken if not fold.head and not fold.reads_its_own]
    assert any(fold.routers for fold in norms)
    assert not all(fold.routers for fold in norms)
    for fold in norms:
        weight = model.get_submodule(fold.maker).weight.detach()
        held = (weight.float() / taken[fold]).bfloat16().float()
        torch.testing.assert_close(held * taken[fold], weight.float(), rtol=1e-6, atol=0.0)
        whole = taken[fold].log2() == taken[fold].log2().round()
        assert bool(whole.all()) == bool(fold.routers)
    [own] = [fold for fold in taken if fold.reads_its_own]
    assert (taken[own] != 1).any(-1).sum() > 1


def test_a_layer_whose_divergence_does_not_fall_is_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forms = built("llama")
    monkeypatch.setattr(scaling, "holding", lambda model, folds, judge, bar: folds)
    answers = iter([9.0, 1.0, 2.0, 0.5, 0.7])  # the bar; to nearest, then each layer's candidate: worse, better, worse
    monkeypatch.setattr(rounding.HeldOut, "divergence", lambda *_: next(answers))
    found = scale_calibrated(model, forms, source())
    assert list(found.kept.values()) == [False, True, False]
    assert {path.split(".")[2] for path in found.modules if path not in forms} == {"1"}
    for path, form in forms.items():
        nearest = form.nearest(model.get_submodule(path)).dequantize()
        assert torch.equal(found.modules[path].dequantize(), nearest) is not path.startswith("model.layers.1")


def test_with_scales_a_model_answers_as_before_but_for_rounding() -> None:
    model, forms = built("llama")
    found = scale_calibrated(model, forms, source())
    plain = tiny.logits(model, "llama")
    with stood_in(model, {path: one for path, one in found.modules.items() if path not in forms}):
        alone = tiny.logits(model, "llama")
    with stood_in(model, found.modules):
        scaled_logits = tiny.logits(model, "llama")
    assert (scaled_logits - plain).norm() < 0.3 * (alone - plain).norm()  # norms alone would change everything


def test_what_does_not_hold_or_gains_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forms = built("llama")
    monkeypatch.setattr(scaling, "SAME", -1.0)
    with pytest.raises(InvalidSetting, match=f"no channels that could be scaled: {CHANGES}"):
        scale_calibrated(model, forms, source())
    monkeypatch.undo()
    search = scaling.search_scales
    monkeypatch.setattr(
        scaling, "search_scales",
        lambda *given, **named: type(found := search(*given, **named))(found.scales, 0.0, False, 1.0),
    )  # fmt: skip
    found = scale_calibrated(model, forms, source())
    assert set(found.left.values()) == {NO_GAIN}
    assert found.kept == {}
    assert found.divergence[0] == found.divergence[1]


def test_a_model_without_such_channels_is_refused_with_the_way_out() -> None:
    model, known = tiny.build("gpt2"), format_named("int4")
    forms = {path: Form(known.linear, 32) for path in layers_of(model)}
    with pytest.raises(InvalidSetting, match=r"more than a norm with a weight\. Use calibration='gptq'"):
        scale_calibrated(model, forms, source())
