"""Generated pictures: one coloured shape and one digit in two cells of a 3x3 grid, and the caption that says so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CELL = 16
SIDE = 3 * CELL
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 40),
    "white": (245, 245, 245),
    "orange": (240, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
# Digits as five columns by seven rows of dots, one number per row, the highest bit on the left.
FONT = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    colour: str
    shape: str
    shape_at: int
    digit: int
    digit_at: int

    def caption(self) -> str:
        """
        >>> Scene("red", "circle", 0, 7, 8).caption()
        ' A red circle top left, digit 7 bottom right.'
        """
        return f" A {self.colour} {self.shape} {PLACES[self.shape_at]}, digit {self.digit} {PLACES[self.digit_at]}."


def scene(rng: np.random.Generator) -> Scene:
    """A scene by chance; the shape and the digit never share a cell."""
    shape_at, digit_at = rng.choice(9, size=2, replace=False)
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
    return Scene(colour, SHAPES[rng.integers(len(SHAPES))], int(shape_at), int(rng.integers(10)), int(digit_at))


def draw(what: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture [48, 48, 3] in uint8: a dark noisy ground, shape and digit moved by a pixel or so."""
    picture = rng.integers(10, 50, size=(SIDE, SIDE, 3)).astype(np.uint8)
    _paint(picture, _shape_mask(what.shape), what.shape_at, COLOURS[what.colour], rng)
    _paint(picture, _digit_mask(what.digit), what.digit_at, (200, 200, 200), rng)
    return picture


def _paint(
    picture: np.ndarray, mask: np.ndarray, place: int, colour: tuple[int, int, int], rng: np.random.Generator
) -> None:
    row, column = divmod(place, 3)
    top, left = (
        CELL * cell + int(rng.integers(0, CELL - size + 1))
        for cell, size in zip((row, column), mask.shape, strict=True)
    )
    region = picture[top : top + mask.shape[0], left : left + mask.shape[1]]
    region[mask] = np.clip(np.array(colour) + rng.integers(-15, 16, size=3), 0, 255)


def _shape_mask(shape: str) -> np.ndarray:
    y, x = np.mgrid[0:13, 0:13] - 6
    masks = {
        "circle": x**2 + y**2 <= 38,
        "square": (abs(x) <= 5) & (abs(y) <= 5),
        "triangle": (abs(x) * 2 <= y + 6) & (y <= 5),
        "cross": (abs(x) <= 2) | (abs(y) <= 2),
    }
    return masks[shape]


def _digit_mask(digit: int) -> np.ndarray:
    bits = np.array([[row >> column & 1 for column in range(4, -1, -1)] for row in FONT[digit]], dtype=bool)
    return bits.repeat(2, axis=0).repeat(2, axis=1)


def patches(pictures: np.ndarray, patch: int, merge: int, frames: int) -> np.ndarray:
    """Patches [pictures * patches, 3 * frames * patch * patch] in float32 as Qwen3-VL wants them.

    Values are scaled to -1 .. 1, the still picture is repeated for each of `frames`, and patches are ordered by squares
    of `merge` x `merge`.
    """
    count, side = len(pictures), pictures.shape[1] // patch // merge
    scaled = pictures.astype(np.float32) / 127.5 - 1
    cut = scaled.reshape(count, side, merge, patch, side, merge, patch, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    still = cut.reshape(-1, 3, 1, patch, patch)
    return np.ascontiguousarray(np.broadcast_to(still, (len(still), 3, frames, patch, patch))).reshape(len(still), -1)
