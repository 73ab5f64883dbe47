from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.calibration.source import calibration_source
from inference_pio.errors import MeasureError
from inference_pio.integration import guard_text as module
from inference_pio.integration.guard_text import guard_text
from inference_pio.measure.text import calibration_text, evaluation_text
from tests import tiny
from tests.model_folder import byte_tokenizer
from tests.quality import reference_models


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS", 128)
    monkeypatch.setattr(module, "WINDOW", 33)


def test_it_is_the_evaluation_part_of_the_default_text_which_nothing_is_calibrated_on() -> None:
    model = reference_models.load("qwen3")
    found = guard_text(model)
    assert found.tokens.shape == (4, 513)
    assert found.scored == 2048
    assert found.source.startswith("pydoc_data.topics of Python")
    assert "evaluation part" in found.source
    read = reference_models.tokenizer().decode(found.tokens[1][:200])
    assert read.strip()[10:200] in evaluation_text()
    assert read.strip()[10:200] not in calibration_text()


@pytest.mark.usefixtures("_few")
def test_a_tokenizer_that_is_given_goes_first() -> None:
    found = guard_text(tiny.build("llama"), byte_tokenizer())
    assert "evaluation part" in found.source
    assert found.scored == 128


@pytest.mark.usefixtures("_few")
def test_without_a_tokenizer_the_model_says_what_calibration_does_not_hear() -> None:
    model = tiny.build("llama")
    found = guard_text(model)
    assert found.source == "text sampled from the model itself, seed 1"
    assert found.tokens.shape == (4, 33)
    learned = calibration_source(model, tokens=132, window=33)
    assert not torch.equal(found.tokens, torch.cat([batch["input_ids"] for batch in learned.batches]))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(input_ids.float())
        return found


def test_where_no_tokens_can_be_had_the_way_out_is_told() -> None:
    with pytest.raises(MeasureError, match=r"Give tokenizer=.*without max_kl and max_perplexity_ratio"):
        guard_text(Plain().eval())


def test_a_model_that_trains_is_refused() -> None:
    with pytest.raises(MeasureError, match=r"training mode.*without max_kl"):
        guard_text(tiny.build("llama").train())


def test_a_model_whose_answers_are_no_numbers_is_told_so_where_it_would_write_the_text() -> None:
    model = tiny.build("llama")
    nn.init.constant_(model.get_submodule("model.norm").weight, torch.nan)  # type: ignore[arg-type]
    with pytest.raises(MeasureError, match="gives nan in its logits"):
        guard_text(model)


def test_a_model_of_one_token_is_refused() -> None:
    model = tiny.build("llama")
    model.config.max_position_embeddings = 1  # type: ignore[union-attr]
    with pytest.raises(MeasureError, match=r"takes 1 tokens at most.*without max_kl"):
        guard_text(model)
