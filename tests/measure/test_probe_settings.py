from __future__ import annotations

import pytest

from inference_pio.errors import InvalidSetting, MeasureError
from inference_pio.measure.probe_settings import ProbeSettings
from inference_pio.measure.text import evaluation_tokens
from tests.tiny import build


def test_lengths_are_cut_to_what_the_model_takes(tokenizer):
    model = build("llama")
    model.config.max_position_embeddings = 32
    fitted = ProbeSettings(new_tokens=10).fitted(model)
    assert (fitted.window, fitted.prefill_tokens, fitted.decode_prompt_tokens) == (32, 32, 22)
    assert fitted.greedy_tokens == 10
    assert ProbeSettings().fitted(build("plain")) == ProbeSettings()
    with pytest.raises(MeasureError, match="set new_tokens to at most 31"):
        ProbeSettings(new_tokens=32).fitted(model)


def test_the_defaults_score_at_least_8192_tokens(tokenizer):
    settings = ProbeSettings()
    tokens = evaluation_tokens(tokenizer, 131, settings.quality_tokens, settings.window)
    assert tokens.shape[0] * (tokens.shape[1] - 1) >= 8192


@pytest.mark.parametrize(
    "changes", [{"window": 1}, {"new_tokens": 1}, {"repeats": 0}, {"repeats": True}, {"window": 9.5}]
)
def test_settings_out_of_bounds_are_told_by_name(changes):
    with pytest.raises(InvalidSetting, match=rf"ProbeSettings\.{next(iter(changes))} must be a whole number"):
        ProbeSettings(**changes)
