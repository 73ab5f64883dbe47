"""A part of the text is held out, disjoint, and tells how far answers have moved."""

from __future__ import annotations

import pytest
import torch

from inference_pio.calibration.held_out import HeldOut, parted
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import InvalidModel, InvalidSetting
from tests import tiny


def source(windows: int, length: int = 16) -> CalibrationSource:
    ids = torch.randint(1, 120, (windows, length), generator=torch.Generator().manual_seed(0))
    return CalibrationSource("ids", tuple({"input_ids": row[None]} for row in ids))


@pytest.mark.parametrize(("windows", "held"), [(2, 1), (8, 1), (16, 2), (100, 12)])
def test_one_window_in_eight_is_held_out_and_nothing_is_in_both(windows: int, held: int) -> None:
    whole = source(windows)
    learned, judged = parted(whole)
    assert (len(judged.batches), len(learned.batches)) == (held, windows - held)
    ids = [batch["input_ids"] for batch in (*learned.batches, *judged.batches)]
    assert torch.equal(torch.cat(ids).sum(0), torch.cat([batch["input_ids"] for batch in whole.batches]).sum(0))
    assert len({id(batch["input_ids"]) for batch in (*learned.batches, *judged.batches)}) == windows


def test_few_of_long_windows_are_held_out() -> None:
    assert len(parted(source(64, 2048))[1].batches) == 2


def test_a_single_window_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidSetting, match=r"single window of 16 tokens.*longer calibration text, or calibration="):
        parted(source(1))


def test_a_model_is_no_way_from_itself_and_some_way_from_another() -> None:
    model = tiny.build("llama")
    held = HeldOut(model, source(2))
    assert held.divergence(model) == 0.0
    head = tiny.build("llama", seed=1).lm_head
    with stood_in(model, {"lm_head": head}):
        assert held.divergence(model) > 0.01


def test_padding_is_not_judged() -> None:
    model, ids = tiny.build("llama"), torch.randint(1, 120, (1, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    held = HeldOut(model, CalibrationSource("padded", ({"input_ids": ids, "attention_mask": mask},)))
    assert held._answers[0][0].shape[0] == 8
    held._answers[0][0][:3] += torch.randn(3, 131)
    assert held.divergence(model) == 0.0


def test_models_without_logits_are_judged_by_what_they_give() -> None:
    model = tiny.build("plain")
    held = HeldOut(model, CalibrationSource("images", (tiny.inputs("plain", model),)))
    assert held.divergence(model) == 0.0
    with torch.no_grad():
        model.fc2.weight.mul_(2)
    assert held.divergence(model) > 0


def test_a_model_that_answers_with_no_numbers_is_refused() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(InvalidModel, match="answers ids with NaN"):
        HeldOut(model, source(2))
