"""The text and the tokenizer: the same each time, split by name, read back to the letter."""

from __future__ import annotations

import numpy as np
from scripts.reference.corpus import HELD_OUT, documents, stream
from scripts.reference.tokenizer import CAPTION_WORDS, VOCABULARY, key_words, train_tokenizer
from tokenizers import Tokenizer


def test_every_held_out_name_is_found_and_none_is_trained_on() -> None:
    kept, trained = ({name for name, _ in documents(held_out=part)} for part in (True, False))
    assert kept == HELD_OUT
    assert not kept & trained
    assert len(trained) > 300


def test_the_documents_come_in_the_same_order_each_time() -> None:
    assert documents() == documents()


def test_the_same_texts_give_the_same_tokenizer(texts: list[str]) -> None:
    assert train_tokenizer(texts[:4]).to_str() == train_tokenizer(texts[:4]).to_str()


def test_text_is_read_back_to_the_letter(tokenizer: Tokenizer) -> None:
    text = "def größe(n=1024):\n\treturn '≥ 2048'  # 日本\n"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.get_vocab_size() <= VOCABULARY


def test_digits_stand_alone_and_words_of_keys_and_captions_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("4096").tokens == list("4096")
    words = key_words(tokenizer)
    assert len(words) >= 200
    assert len(tokenizer.encode(CAPTION_WORDS).ids) == len(CAPTION_WORDS.split())
    assert all(len(tokenizer.encode(f" {word}").ids) == 1 for word in words)


def test_a_seed_shuffles_documents_and_nothing_else(texts: list[str], tokenizer: Tokenizer) -> None:
    plain, shuffled, again = (stream(texts[:5], tokenizer, seed) for seed in (None, 3, 3))
    assert np.array_equal(shuffled, again)
    assert not np.array_equal(plain, shuffled)
    assert np.array_equal(np.sort(plain), np.sort(shuffled))
