from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from inference_pio.calibration import CalibrationSource, calibration_source
from inference_pio.errors import InvalidSetting
from tests import tiny
from tests.integration.test_measured import byte_tokenizer


def test_the_default_text_is_the_part_that_is_never_evaluated_on() -> None:
    source = calibration_source(tiny.build("llama"), tokenizer=byte_tokenizer(), tokens=300, window=64)
    assert source.name == "pydoc_data.topics, calibration part"
    assert [batch["input_ids"].shape for batch in source.batches] == [(1, 64)] * 4
    assert source.tokens == 256


def test_windows_are_spread_over_the_whole_text() -> None:
    source = calibration_source(tiny.build("llama"), tokenizer=byte_tokenizer(), tokens=128, window=64)
    first, second = (batch["input_ids"] for batch in source.batches)
    assert not torch.equal(first, second)


def test_texts_tokens_and_example_inputs_are_taken_as_given() -> None:
    model = tiny.build("llama")
    texts = calibration_source(model, ["abcd" * 8, "efgh" * 8], byte_tokenizer(), window=16)
    assert (texts.name, texts.tokens) == ("2 texts of the user", 64)
    ids = torch.arange(12).view(2, 6)
    assert calibration_source(model, ids).tokens == 12
    inputs = calibration_source(tiny.build("plain"), [{"images": torch.ones(1, 3, 8, 8)}])
    assert (inputs.name, inputs.tokens) == ("1 example inputs of the user", 0)
    assert calibration_source(model, inputs) is inputs


def test_token_ids_are_read_whole() -> None:
    assert calibration_source(tiny.build("llama"), torch.arange(60).view(10, 6), tokens=20).tokens == 60


def test_padding_is_not_counted() -> None:
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.int64), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    assert CalibrationSource("mine", (batch,)).tokens == 3


def test_without_text_the_model_speaks_for_itself_the_same_each_time() -> None:
    model = tiny.build("llama")
    state = torch.random.get_rng_state()
    once, again = (calibration_source(model, tokens=64, window=16, seed=3) for _ in range(2))
    assert once.name == "sampled from the model itself, seed 3"
    assert once.digest == again.digest != calibration_source(model, tokens=64, window=16, seed=4).digest
    assert [batch["input_ids"].shape for batch in once.batches] == [(1, 16)] * 4
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_tokenizer_beside_the_model_is_found(tmp_path: Path) -> None:
    model = tiny.build("llama")
    byte_tokenizer().save_pretrained(tmp_path)
    model.config.name_or_path = str(tmp_path)
    assert calibration_source(model, tokens=32, window=16).name == "pydoc_data.topics, calibration part"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.ones(2, 3), "must be ids"),
        (torch.ones(3, dtype=torch.int64), "must be ids"),
        (torch.full((1, 4), 10**6), "another model's tokenizer"),
        (["some text"], "need a tokenizer"),
        ([1, 2], "a list of texts, token ids"),
        ([{}], "a list of texts, token ids"),
        (7, "a list of texts, token ids"),
        ([], "a list of texts, token ids"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused_with_the_way_out(given: object, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        calibration_source(tiny.build("llama"), given)


def test_a_text_of_one_token_is_too_short() -> None:
    with pytest.raises(InvalidSetting, match="too short to calibrate on"):
        calibration_source(tiny.build("llama"), ["a"], byte_tokenizer())


def test_a_module_that_says_nothing_needs_example_inputs() -> None:
    with pytest.raises(InvalidSetting, match="nothing to calibrate this Linear on"):
        calibration_source(nn.Linear(2, 2))


@pytest.mark.parametrize("sizes", [{"tokens": 0}, {"window": 1}])
def test_sizes_must_make_sense(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidSetting, match="1 token or more"):
        calibration_source(tiny.build("llama"), **sizes)
