"""Pictures in a prompt: their tokens, their captions, and the three rows of positions M-RoPE counts by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from .pictures import Scene, draw, patches, scene
from .retrieval import CAPTION, IGNORED, TEXT
from .tokenizer import IMAGE, VISION_END, VISION_START

PATCH, MERGE, FRAMES, GRID = 8, 2, 2, 6
IMAGE_TOKENS = (GRID // MERGE) ** 2


@dataclass(frozen=True)
class Album:
    """Writes pictures with captions in the tokens of `tokenizer`."""

    tokenizer: Tokenizer

    def head(self) -> list[int]:
        """The tokens that stand for a picture."""
        start, image, end = (self.tokenizer.token_to_id(token) for token in (VISION_START, IMAGE, VISION_END))
        return [start, *[image] * IMAGE_TOKENS, end]

    def entry(self, what: Scene) -> tuple[list[int], list[int]]:
        """The picture's tokens, and its caption's with the line's end."""
        return self.head(), self.tokenizer.encode(what.caption() + "\n", add_special_tokens=False).ids

    def page(
        self, length: int, count: int, filler: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [length], kinds [length] and pixels [patches, values]: `count` pictures, then running text."""
        tokens, kinds, drawn = [], [], []
        for _ in range(count):
            what = scene(rng)
            head, caption = self.entry(what)
            drawn.append(draw(what, rng))
            tokens += head + caption
            kinds += [IGNORED] * len(head) + [CAPTION] * len(caption)
        if len(tokens) > length:
            raise ValueError(f"{count} pictures take {len(tokens)} tokens and a row has {length}")
        start = int(rng.integers(len(filler) - length))
        rest = filler[start : start + length - len(tokens)]
        filled = np.concatenate([np.array(tokens, dtype=np.uint16), rest])
        what_kinds = np.concatenate([np.array(kinds, dtype=np.uint8), np.full(len(rest), TEXT, dtype=np.uint8)])
        return filled, what_kinds, patches(np.stack(drawn), PATCH, MERGE, FRAMES)


def positions(tokens: np.ndarray, image: int) -> np.ndarray:
    """Time, row and column [3, length] of each token: a picture counts as one step of time and as wide as its side.

    >>> positions(np.array([7, *[5] * 9, 7]), image=5)[:, -1].tolist()
    [4, 4, 4]
    """
    return _positions(tokens, image, GRID // MERGE)


def _positions(tokens: np.ndarray, image: int, side: int) -> np.ndarray:
    is_image = tokens == image
    within = np.cumsum(is_image) - 1
    within = np.where(is_image, within % (side * side), 0)
    # A picture of side * side tokens moves the count by side alone: its last token makes up the difference.
    ends = is_image & (within == side * side - 1)
    step = np.where(is_image, 0, 1) + np.where(ends, side, 0)
    base = np.concatenate([[0], np.cumsum(step)[:-1]])
    rows, columns = np.where(is_image, within // side, 0), np.where(is_image, within % side, 0)
    return np.stack([base, base + rows, base + columns])
