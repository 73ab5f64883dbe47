from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference_pio.errors import InvalidSetting, SourceError
from inference_pio.integration.generation import generate_text
from inference_pio.sources import OpenedModel, open_model


@pytest.fixture(scope="module")
def opened(llama_folder: Path) -> OpenedModel:
    return open_model(llama_folder, progress=False)


def test_the_text_is_what_the_model_says_greedily_and_comes_in_pieces(opened: OpenedModel) -> None:
    pieces: list[str] = []
    found = generate_text(opened, "def f(x):", max_new_tokens=12, chat=False, say=pieces.append)
    given = torch.tensor([opened.tokenizer("def f(x):")["input_ids"]])
    wanted = opened.model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, given.shape[1] :]
    assert found.text == "".join(pieces) == opened.tokenizer.decode(wanted, skip_special_tokens=True)
    assert (found.prompt_tokens, found.new_tokens) == (given.shape[1], 12)
    assert found.decode_tokens_per_s > 0
    assert found.time_to_first_token_s > 0


def test_the_chat_form_is_used_where_there_is_one(opened: OpenedModel) -> None:
    chat = generate_text(opened, "hello", max_new_tokens=2)
    bare = generate_text(opened, "hello", max_new_tokens=2, chat=False)
    assert chat.prompt_tokens > bare.prompt_tokens


def test_one_token_has_no_decode_speed(opened: OpenedModel) -> None:
    assert generate_text(opened, "hello", max_new_tokens=1).decode_tokens_per_s is None


def test_the_models_own_sampling_settings_do_not_matter(opened: OpenedModel) -> None:
    before = generate_text(opened, "hello", max_new_tokens=8).text
    own = opened.model.generation_config
    own.do_sample, own.temperature, own.top_k = True, 5.0, 3
    try:
        assert generate_text(opened, "hello", max_new_tokens=8).text == before
    finally:
        own.do_sample, own.temperature, own.top_k = None, None, None


def test_without_a_tokenizer_or_a_token_it_is_refused(opened: OpenedModel) -> None:
    with pytest.raises(SourceError, match="has no tokenizer"):
        generate_text(replace(opened, tokenizer=None), "hello")
    with pytest.raises(SourceError, match="holds no token"):
        generate_text(opened, "", chat=False)


def test_a_chat_form_that_fails_is_told_with_the_way_round_it(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form, said in (("{{ raise_exception('not today') }}", "not today"), ("{{ 1 / 0 }}", "division by zero")):
        monkeypatch.setattr(opened.tokenizer, "chat_template", form)
        with pytest.raises(SourceError, match=rf"{said}.*--no-chat"):
            generate_text(opened, "hello", max_new_tokens=1)
        assert generate_text(opened, "hello", max_new_tokens=1, chat=False).new_tokens == 1


def test_more_tokens_than_the_model_has_positions_are_refused_before_the_first(opened: OpenedModel) -> None:
    said: list[str] = []
    with pytest.raises(InvalidSetting, match=r"takes 512 tokens in all.*ask for at most 494 new ones"):
        generate_text(opened, "word", max_new_tokens=99_999_999, say=said.append)
    assert said == []
