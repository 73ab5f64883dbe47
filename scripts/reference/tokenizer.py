"""The tokenizer all reference models share: byte-level BPE trained on their own text, digits split singly."""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
END, IMAGE = "<|endoftext|>", "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>", VISION_START, VISION_END, IMAGE, "<|video_pad|>")
# The longest common words serve as keys and values; each is one token together with the space before it.
WORDS = 384
# The words captions are made of, said often enough that each becomes a token.
CAPTION_WORDS = (
    " A red green blue yellow white orange circle square triangle cross top middle bottom left centre right digit"
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A tokenizer of `VOCABULARY` tokens; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, CAPTION_WORDS * 3000], trainer)
    return tokenizer


def key_words(tokenizer: Tokenizer) -> list[str]:
    """The words that key-value lines are made of: whole lower-case words, longest first, then by the alphabet."""
    whole = [token[1:] for token in tokenizer.get_vocab() if re.fullmatch(r"Ġ[a-z]{4,}", token)]
    return sorted(whole, key=lambda word: (-len(word), word))[:WORDS]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
