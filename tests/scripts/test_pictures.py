"""Pictures: drawn as told, cut as the vision tower wants them, placed as M-RoPE counts them."""

from __future__ import annotations

import numpy as np
import torch
from scripts.reference.architectures import build
from scripts.reference.captions import FRAMES, GRID, MERGE, PATCH, Album, positions
from scripts.reference.pictures import CELL, COLOURS, Scene, draw, patches, scene
from scripts.reference.tokenizer import IMAGE
from tokenizers import Tokenizer


def test_a_picture_shows_its_colour_in_its_cell_and_nowhere_else() -> None:
    what = Scene("red", "square", shape_at=5, digit=3, digit_at=0)
    picture = draw(what, np.random.default_rng(0)).astype(int)
    near = (abs(picture - np.array(COLOURS["red"])).max(axis=-1) <= 15).reshape(3, CELL, 3, CELL).sum(axis=(1, 3))
    assert near[1, 2] == 121
    assert near.sum() == 121


def test_a_seed_draws_the_same_scene_again() -> None:
    drawn = [draw(scene(rng), rng) for rng in (np.random.default_rng(4), np.random.default_rng(4))]
    assert np.array_equal(*drawn)


def test_patches_are_ordered_by_squares_and_hold_each_frame_alike() -> None:
    picture = np.zeros((1, 48, 48, 3), dtype=np.uint8)
    picture[0, 8:16, 0:8] = 255  # second row, first column: third in a square of two by two
    cut = patches(picture, PATCH, MERGE, FRAMES).reshape(GRID**2, 3, FRAMES, PATCH, PATCH)
    assert (cut[2] == 1).all()
    assert (np.delete(cut, 2, axis=0) == -1).all()


def test_positions_are_the_librarys_own(tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    row, _, pixels = Album(tokenizer).page(400, 3, tokens, np.random.default_rng(0))
    image = tokenizer.token_to_id(IMAGE)
    assert len(pixels) == 3 * GRID**2
    ids = torch.from_numpy(row.astype(np.int64))[None]
    grids = torch.tensor([[1, GRID, GRID]] * 3)
    expected, _ = build("qwen3_vl", 0).model.get_rope_index(ids, (ids == image).int(), image_grid_thw=grids)
    assert np.array_equal(positions(row, image), expected[:, 0].numpy())
