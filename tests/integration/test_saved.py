from __future__ import annotations

from pathlib import Path

import torch

import inference_pio
from inference_pio.integration.saved import is_saved, open_saved
from tests import tiny
from tests.model_folder import byte_tokenizer


def test_a_saved_model_is_opened_with_its_tokenizer_and_answers_as_it_did(tmp_path: Path) -> None:
    model = inference_pio.optimize(tiny.build("llama"))
    folder = inference_pio.save(model, tmp_path / "saved", byte_tokenizer())
    opened = open_saved(str(folder))
    assert is_saved(str(folder))
    assert (opened.name, opened.folder) == ("saved", folder)
    assert opened.tokenizer.decode(opened.tokenizer("assert x")["input_ids"]) == "assert x"
    assert torch.equal(tiny.logits(opened.model, "llama"), tiny.logits(model, "llama"))


def test_a_model_saved_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    folder = inference_pio.save(inference_pio.optimize(tiny.build("llama")), tmp_path / "saved")
    assert open_saved(str(folder)).tokenizer is None


def test_other_sources_are_not_saved_ones(llama_folder: Path) -> None:
    assert not is_saved(str(llama_folder))
    assert not is_saved("demo")
