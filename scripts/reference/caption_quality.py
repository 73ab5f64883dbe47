"""Whether a vision model sees: captions of held-out pictures with the picture, without it and with another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from .captions import FRAMES, GRID, MERGE, PATCH, Album
from .pictures import draw, patches, scene
from .tokenizer import IMAGE

PICTURES = 128
# Word by word, where the answer stands in " A red circle top left, digit 7 bottom right."
FIELDS = {"colour": (1,), "shape": (2,), "shape_at": (3, 4), "digit": (6,), "digit_at": (7, 8)}


@torch.no_grad()
def caption_quality(
    model: Any, tokenizer: Tokenizer, count: int = PICTURES, seed: int = 2
) -> dict[str, dict[str, float]]:
    """For each way of showing, the shares told rightly by greedy decoding: all fields, each field, whole captions."""
    rng = np.random.default_rng(seed)
    scenes = [scene(rng) for _ in range(count)]
    pixels = patches(np.stack([draw(what, rng) for what in scenes]), PATCH, MERGE, FRAMES).reshape(count, GRID**2, -1)
    told = [what.caption() for what in scenes]
    shown = {"with": pixels, "swapped": np.roll(pixels, 1, axis=0), "without": None}
    return {name: _score(_captions(model, tokenizer, part, count), told) for name, part in shown.items()}


def _captions(model: Any, tokenizer: Tokenizer, pixels: np.ndarray | None, count: int) -> list[str]:
    """Captions by greedy decoding; without a picture its tokens are left out."""
    head = Album(tokenizer).head()
    image = tokenizer.token_to_id(IMAGE)
    prompt = head if pixels is not None else [token for token in head if token != image]
    tokens = torch.tensor(prompt, device=model.device).expand(count, -1)
    inputs: dict[str, Any] = {}
    if pixels is not None:
        inputs["pixel_values"] = torch.from_numpy(pixels.reshape(-1, pixels.shape[-1])).to(model.device, model.dtype)
        inputs["image_grid_thw"] = torch.tensor([[1, GRID, GRID]] * count, device=model.device)
        inputs["mm_token_type_ids"] = (tokens == image).long()
    longest = 24
    attention = torch.ones_like(tokens)
    said = model.generate(
        input_ids=tokens, attention_mask=attention, max_new_tokens=longest, do_sample=False, pad_token_id=0, **inputs
    )
    return [text.split("\n")[0] for text in tokenizer.decode_batch(said[:, len(prompt) :].tolist())]


def _score(said: list[str], told: list[str]) -> dict[str, float]:
    right: dict[str, list[bool]] = {name: [] for name in (*FIELDS, "whole")}
    for ours, truth in zip(said, told, strict=True):
        words, true_words = (text.replace(",", "").replace(".", "").split() for text in (ours, truth))
        for name, places in FIELDS.items():
            right[name].append(all(words[at : at + 1] == true_words[at : at + 1] for at in places))
        right["whole"].append(words == true_words)
    shares = {name: float(np.mean(hits)) for name, hits in right.items()}
    return {"fields": float(np.mean([shares[name] for name in FIELDS])), **shares}
