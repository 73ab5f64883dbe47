"""Mixed formats: bounds told before anything runs, the choice judged on text that it was not made by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.calibration import mixed
from inference_pio.calibration.allocation import alike, bytes_of
from inference_pio.calibration.candidates import choices_of, weight_bytes
from inference_pio.calibration.mixed import bounds_of, foretold, mix_formats, told_of
from inference_pio.calibration.source import CalibrationSource
from inference_pio.errors import PlanError
from inference_pio.plan.skeleton import skeleton_of, tensor_bytes
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

PATHS = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qkv")


def source(windows: int = 16, length: int = 32) -> CalibrationSource:
    ids = torch.randint(1, 120, (windows, length), generator=torch.Generator().manual_seed(0))
    return CalibrationSource("ids", tuple({"input_ids": row[None]} for row in ids))


def choices_in(model: nn.Module) -> dict[str, Any]:
    return {path: choices_of(model.get_submodule(path)) for path in PATHS}


def test_bounds_are_the_same_on_a_skeleton_and_count_every_tensor_once() -> None:
    model = tiny.build("llama")
    choices = choices_in(model)
    bounds = bounds_of(model, choices, None, 0.8)
    assert bounds == bounds_of(skeleton_of(model), choices, None, 0.8)
    assert bounds["of_bytes"] == sum(weight_bytes(model.get_submodule(path)) for path in PATHS)
    assert bounds["budget_bytes"] == round(0.2 * bounds["of_bytes"])
    assert bounds["beside_bytes"] + bounds["of_bytes"] == tensor_bytes(model)
    whole = bounds["beside_bytes"] + bounds["budget_bytes"]
    assert bounds_of(model, choices, whole, None) == bounds


@pytest.mark.parametrize("asked", [(1000, None), (None, 0.99)])
def test_what_is_out_of_reach_is_told_with_the_least_that_is_not(asked: tuple[Any, Any]) -> None:
    model = tiny.build("llama")
    choices = choices_in(model)
    with pytest.raises(PlanError, match=r"is out of reach: .* Ask for target_bytes=\d+ or ") as told:
        bounds_of(model, choices, *asked)
    words = str(told.value).split("target_bytes=")[-1]
    least, ratio = int(words.split()[0]), float(words.split("compression_ratio=")[1].split()[0])
    assert f"this model takes {least} bytes" in str(told.value)
    assert bounds_of(model, choices, least, None)["budget_bytes"] == bounds_of(model, choices, None, 0.5)["least_bytes"]
    assert bounds_of(model, choices, None, ratio)
    with pytest.raises(PlanError):
        bounds_of(model, choices, least - 1, None)
    with pytest.raises(PlanError):
        bounds_of(model, choices, None, ratio + 0.001)


def test_a_choice_fits_and_is_told_and_nothing_is_edited() -> None:
    model, told = tiny.build("llama"), list[str]()
    choices, before = choices_in(model), fingerprint(model)
    budget = round(1.2 * bytes_of(alike(choices, "int4", 64)))
    found = mix_formats(model, choices, budget, source(), lambda stage, share: told.append(stage))
    assert before.differences(fingerprint(model)) == []
    data = found.to_json(model)
    assert bytes_of(found.chosen) == data["predicted_bytes"] <= budget
    assert sum(data["by_role"]["attention.qkv"].values()) == len(PATHS)
    assert set(data["held_out"]) == {"mixed", "int4 in groups of 128", "int4 in groups of 32", "int8"}
    assert data["held_out"]["mixed"]["divergence"] < data["held_out"]["int4 in groups of 32"]["divergence"]
    assert set(data["sensitivity"]) == set(PATHS)
    assert data["source"]["tokens"] + data["source"]["held_out_tokens"] == 16 * 32
    assert data["coverage"]["parameters"] == sum(model.get_submodule(path).weight.numel() for path in PATHS)
    assert set(told) == {"calibration", "sensitivity"}


def test_the_sum_of_what_layers_lose_foretells_what_all_lose() -> None:
    model = tiny.build("llama")
    choices = choices_in(model)
    found = mix_formats(model, choices, round(1.2 * bytes_of(alike(choices, "int4", 64))), source())
    data = found.to_json(model)
    assert data["predicted_divergence"] == pytest.approx(data["held_out"]["mixed"]["divergence"], rel=0.5)


def test_one_format_alike_is_taken_where_it_loses_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    choices = choices_in(model)
    alone = alike(choices, "int4", 32)
    monkeypatch.setattr(mixed, "with_losses", lambda model, choices, *_: choices)
    monkeypatch.setattr(mixed, "_divergence", lambda _, chosen, *__: 1.0 if chosen == alone else 2.0)
    found = mix_formats(model, choices, round(1.1 * bytes_of(alone)), source())
    assert (found.name, found.chosen) == ("int4 in groups of 32", alone)


def test_a_finer_format_that_does_not_fit_is_never_taken() -> None:
    """int8 loses least and is only compared with."""
    model = tiny.build("llama")
    choices = choices_in(model)
    budget = bytes_of(alike(choices, "int4", 128))
    found = mix_formats(model, choices, budget, source())
    assert bytes_of(found.chosen) <= budget < found.divergences["int8"][0]
    assert found.divergences["int8"][1] < found.divergences[found.name][1]


def test_what_a_plan_shows_fits_too() -> None:
    model = tiny.build("llama")
    choices = choices_in(model)
    budget = round(1.2 * bytes_of(alike(choices, "int4", 64)))
    shown = foretold(choices, budget)
    size = {(path, one.format, one.group): one.nbytes for path, of in choices.items() for one in of}
    taken = sum(size[path, name, shown["groups"].get(path, 0)] for path, name in shown["formats"].items())
    assert 0.9 * budget < taken <= budget


def test_words_for_plan_and_receipt() -> None:
    bounds = {"budget_bytes": 10, "least_bytes": 5, "of_bytes": 40, "beside_bytes": 3}
    (foretelling,) = told_of({"mixed": bounds})
    assert "10 bytes of the 40" in foretelling
    assert "decided when it is applied" in foretelling
    mixture = {
        "chosen": "mixed", "predicted_bytes": 9, "by_role": {"experts": {"int4, 32": 2, "int8": 1}},
        "held_out": {"mixed": {"bytes": 9, "divergence": 0.25}, "int8": {"bytes": 20, "divergence": 0.125}},
    }  # fmt: skip
    first, second = told_of({"mixed": bounds, "mixture": mixture})
    assert first.endswith("it takes 9: experts int4 in groups of 32 (2) and int8 (1).")
    assert second == "divergence on held-out text: mixed 0.25 in 9 bytes, int8 0.125 in 20 bytes; mixed is taken."
