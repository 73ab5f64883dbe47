from __future__ import annotations

import sys

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from inference_pio.errors import MeasureError
from inference_pio.measure import text
from tests.measure.conftest import small_tokenizer


def paragraphs(whole: str) -> list[str]:
    return whole.split("\n\n")


def test_both_parts_are_large_and_share_no_paragraph():
    evaluation, calibration = paragraphs(text.evaluation_text()), paragraphs(text.calibration_text())
    assert not set(evaluation) & set(calibration)
    assert len(set(evaluation)) == len(evaluation)
    assert len(text.evaluation_text()) > 100_000
    assert len(text.calibration_text()) > 50_000


def test_the_reference_itself_does_repeat_paragraphs_so_a_split_by_topic_alone_would_leak():
    from pydoc_data.topics import topics

    names = sorted(topics)
    first, second = (
        {p for name in part for p in paragraphs(topics[name]) if p.strip()} for part in (names[0::2], names[1::2])
    )
    assert first & second


def test_the_text_is_the_same_every_time():
    before = text.evaluation_text(), text.calibration_text(), text.text_source()
    text._parts.cache_clear()
    assert (text.evaluation_text(), text.calibration_text(), text.text_source()) == before


def test_windows_score_at_least_the_tokens_that_were_asked_for(tokenizer):
    tokens = text.evaluation_tokens(tokenizer, 128, tokens=1000, window=64)
    assert tokens.shape == (16, 64)  # 16 x 63 = 1008
    assert tokens.dtype == torch.int64
    assert len({tuple(row) for row in tokens.tolist()}) == 16


def test_windows_are_spread_over_the_whole_text(tokenizer):
    two = text.evaluation_tokens(tokenizer, 128, tokens=126, window=64)
    whole = tokenizer(text.evaluation_text())["input_ids"]
    middle = (len(whole) // 64) // 2 * 64
    assert two.tolist() == [whole[:64], whole[middle : middle + 64]]


def test_every_window_starts_with_the_start_token_where_the_tokenizer_puts_one():
    tokenizer = small_tokenizer(start="<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokens = text.evaluation_tokens(tokenizer, 128, tokens=100, window=51)
    assert tokens.shape == (2, 51)
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert (tokens[:, 1:] != tokenizer.bos_token_id).all()


def test_a_start_token_that_the_tokenizer_only_knows_is_not_put_in_front():
    tokenizer = small_tokenizer(start="<s>")
    assert (text.evaluation_tokens(tokenizer, 128, tokens=100, window=51) != tokenizer.bos_token_id).all()


def test_no_tokenizer_is_refused_with_the_way_out():
    with pytest.raises(MeasureError, match=r"without a tokenizer.*Give tokenizer=.*tokens="):
        text.evaluation_tokens(None)


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(MeasureError, match="the model knows 50 tokens"):
        text.evaluation_tokens(tokenizer, vocab_size=50)


def test_more_tokens_than_the_text_has_are_refused_with_the_most_there_are(tokenizer):
    with pytest.raises(MeasureError, match=r"ask for at most (\d+) tokens") as caught:
        text.evaluation_tokens(tokenizer, 128, tokens=10**9)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert text.evaluation_tokens(tokenizer, 128, tokens=most).shape[0] == most // 511


@pytest.mark.parametrize(("tokens", "window"), [(10, 1), (0, 8), (-1, 8)])
def test_windows_that_score_nothing_are_refused(tokenizer, tokens, window):
    with pytest.raises(MeasureError, match="windows of 2 tokens or more"):
        text.evaluation_tokens(tokenizer, 128, tokens=tokens, window=window)


def test_a_python_without_the_reference_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    text._parts.cache_clear()
    try:
        with pytest.raises(MeasureError, match="comes without pydoc_data"):
            text.evaluation_text()
    finally:
        text._parts.cache_clear()


def test_sampled_tokens_are_seeded_and_inside_the_vocabulary():
    tokens = text.sampled_tokens(11, 500, seed=3)
    assert tokens.shape == (1, 500)
    assert torch.equal(tokens, text.sampled_tokens(11, 500, seed=3))
    assert not torch.equal(tokens, text.sampled_tokens(11, 500, seed=4))
    assert (int(tokens.min()), int(tokens.max())) == (0, 10)
