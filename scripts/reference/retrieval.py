"""Key-value lines recalled thousands of tokens later.

A line reads `@ river return cobalt`. Its first use defines the key, each later use asks for it. Keys are two words and
the value is one, every word a token, so that a line is five tokens and its answer exactly one. Nothing stands between
key and value: the question's last token is then the one before the answer, as in all text that repeats itself.
Definitions are chance: only the recalled values (and the text around the lines) are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from .tokenizer import key_words

LINE_TOKENS = 5
VALUE_AT = 3
IGNORED, TEXT, RECALL, CAPTION, ECHO = range(5)
# Documents differ in how many words they draw from: few make recall easy to discover, many make it exact.
FEWEST_WORDS = 16


@dataclass(frozen=True)
class Lines:
    """The token ids that key-value lines are written with."""

    at: int
    newline: int
    words: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Lines:
        """The ids of this tokenizer; each mark and word must be one token."""
        words = [_one_token(tokenizer, f" {word}") for word in key_words(tokenizer)]
        marks = (_one_token(tokenizer, mark) for mark in ("@", "\n"))
        return cls(*marks, np.array(words, dtype=np.uint16))

    def write(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Lines [n, 5] for keys [n, 2] and values [n], both numbers of words."""
        lines = np.empty((len(keys), LINE_TOKENS), dtype=np.uint16)
        lines[:, 0], lines[:, 4] = self.at, self.newline
        lines[:, 1:3], lines[:, 3] = self.words[keys], self.words[values]
        return lines

    def fewer(self, at_least: int, rng: np.random.Generator) -> Lines:
        """The same with a chance selection of words, `at_least` so many."""
        low = max(FEWEST_WORDS, at_least)
        count = int(np.exp(rng.uniform(np.log(low), np.log(len(self.words)))))
        return Lines(self.at, self.newline, rng.choice(self.words, size=count, replace=False))

    def pairs(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`count` different keys [count, 2] and their values [count], as numbers of words."""
        flat = rng.choice(len(self.words) ** 2, size=count, replace=False)
        return np.stack(divmod(flat, len(self.words)), axis=1), rng.integers(len(self.words), size=count)


def _one_token(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens; key-value lines need it to be one")
    return int(ids[0])


def document(
    length: int, lines: Lines, filler: np.ndarray, rng: np.random.Generator, text_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [length] and what each one is [length]: ignored, text or a recalled value.

    `text_share` of the tokens are filler, in pieces between groups of lines. The document ends on a group of questions.
    """
    count = max(2, int(length * (1 - text_share)) // LINE_TOKENS)
    keys, is_new = _plan(count, rng)
    pairs = int(is_new.sum())
    drawn_from = lines.fewer(int(2 * pairs**0.5), rng)
    pair_keys, pair_values = drawn_from.pairs(pairs, rng)
    rows = drawn_from.write(pair_keys[keys], pair_values[keys])
    kinds = np.full(rows.shape, IGNORED, dtype=np.uint8)
    kinds[:, -1] = TEXT
    kinds[:, VALUE_AT] = np.where(is_new, IGNORED, RECALL)
    return _spread(length, rows, kinds, filler, rng)


def echo(length: int, lines: Lines, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and kinds [length] of chance words said again and again: every token after the first round is recall."""
    words = lines.fewer(FEWEST_WORDS, rng).words
    period = int(np.exp(rng.uniform(np.log(8), np.log(length // 2))))
    said = np.resize(rng.choice(words, size=period), length)
    return said, np.where(np.arange(length) > period, ECHO, IGNORED).astype(np.uint8)


def _plan(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The pair each line is about, and whether the line defines it: a mix first, then questions alone."""
    asked_last = max(1, min(count // 3, 64))
    is_new = rng.random(count) < rng.uniform(0.3, 0.7)
    is_new[0], is_new[count - asked_last :] = True, False
    known = np.cumsum(is_new)
    asked = (rng.random(count) * known).astype(np.int64)
    return np.where(is_new, known - 1, asked), is_new


def _spread(
    length: int, rows: np.ndarray, kinds: np.ndarray, filler: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lines with pieces of running text between them, cut or filled to `length`."""
    spare = length - rows.size
    pieces = int(rng.integers(1, max(2, min(len(rows), 1 + spare // 64))))
    borders = np.sort(rng.integers(0, max(1, len(rows) - 1), size=pieces))
    sizes = np.diff(np.sort(np.concatenate([[0], rng.integers(0, spare + 1, size=pieces - 1), [spare]])))
    start = int(rng.integers(len(filler) - length))
    tokens, what, row = [], [], 0
    for border, size in zip(borders, sizes, strict=True):
        tokens += [rows[row:border].ravel(), filler[start : start + size]]
        what += [kinds[row:border].ravel(), np.full(size, TEXT, dtype=np.uint8)]
        row, start = border, start + size
    tokens.append(rows[row:].ravel())
    what.append(kinds[row:].ravel())
    return np.concatenate(tokens), np.concatenate(what)
