"""What each training step reads: text, retrieval documents and pictures, made from the seed and the step alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from .captions import Album, positions
from .retrieval import TEXT, Lines, document, echo
from .tokenizer import IMAGE

TOKENS_PER_STEP = 16384
PICTURES_PER_STEP = 64
# How much running text stands between key-value lines: none, some, or nearly all as in a needle test.
TEXT_SHARES = (0.0, 0.5, 0.9, 0.97)


@dataclass
class Batch:
    """`tokens` and `kinds` [rows, length + 1]; of pictures `pixels`, places `at`, `positions` [3, rows, length]."""

    tokens: np.ndarray
    kinds: np.ndarray
    pixels: np.ndarray | None = None
    at: np.ndarray | None = None
    positions: np.ndarray | None = None


@dataclass(frozen=True)
class Maker:
    """Makes batches from the training tokens; equal arguments make equal batches, on any machine."""

    tokenizer: Tokenizer
    train: np.ndarray
    seed: int
    sees: bool
    tokens_per_step: int = TOKENS_PER_STEP
    pictures_per_step: int = PICTURES_PER_STEP

    def batch(self, step: int, length: int) -> Batch:
        """The rows of step `step` at this length; half are retrieval documents, and a quarter pictures if it sees."""
        rng = np.random.default_rng([self.seed, step])
        rows = max(2, self.tokens_per_step // length)
        pages = max(1, rows // 4) if self.sees else 0
        asked = rows // 2 if rows - pages > 1 else step % 2
        lines = Lines.of(self.tokenizer)
        tokens, kinds = np.empty((rows, length + 1), np.int64), np.empty((rows, length + 1), np.uint8)
        for row in range(pages, rows):
            if row < pages + asked // 4:
                tokens[row], kinds[row] = echo(length + 1, lines, rng)
            elif row < pages + asked:
                tokens[row], kinds[row] = document(length + 1, lines, self.train, rng, rng.choice(TEXT_SHARES))
            else:
                start = int(rng.integers(len(self.train) - length - 1))
                tokens[row], kinds[row] = self.train[start : start + length + 1], TEXT
        if not self.sees:
            return Batch(tokens, kinds)
        return self._with_pictures(Batch(tokens, kinds), pages, rng)

    def _with_pictures(self, batch: Batch, pages: int, rng: np.random.Generator) -> Batch:
        length = batch.tokens.shape[1] - 1
        album, drawn = Album(self.tokenizer), []
        for row in range(pages):
            count = self.pictures_per_step // pages
            batch.tokens[row], batch.kinds[row], pixels = album.page(length + 1, count, self.train, rng)
            drawn.append(pixels)
        image = self.tokenizer.token_to_id(IMAGE)
        read = batch.tokens[:, :-1]
        batch.pixels, batch.at = np.concatenate(drawn), np.flatnonzero(read.ravel() == image)
        batch.positions = np.stack([positions(row, image) for row in read], axis=1)
        return batch
