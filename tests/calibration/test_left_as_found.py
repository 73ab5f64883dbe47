from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.calibration.left_as_found import left_as_found
from inference_pio.calibration.source import calibration_source
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny


def test_what_was_noted_is_taken_off_again_whatever_happened() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].seen = 1
    before = fingerprint(model)

    def note_and_fail() -> None:
        model[0].seen, model.more = 2, torch.ones(2)
        raise KeyError

    with pytest.raises(KeyError), left_as_found(model):
        note_and_fail()
    assert before.differences(fingerprint(model)) == []
    assert model[0].seen == 1


def test_a_model_that_notes_positions_speaks_for_itself_and_stays_as_it_was() -> None:
    model = tiny.build("qwen3_vl")
    before = fingerprint(model)
    calibration_source(model, tokens=32, window=16)
    assert before.differences(fingerprint(model)) == []
