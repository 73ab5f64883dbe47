"""What a trained model can do with held-out text and with needles, by the library's own forward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .retrieval import LINE_TOKENS, VALUE_AT, Lines

LENGTHS, DEPTHS = (1024, 4096, 8192), (0.0, 0.25, 0.5, 0.75, 1.0)
NEEDLES_PER_CELL = 8
SLICE = 1024


@dataclass(frozen=True)
class Needle:
    """A prompt [length] that ends in a question, and the token that answers it."""

    prompt: np.ndarray
    answer: int


def needle(length: int, depth: float, lines: Lines, text: np.ndarray, rng: np.random.Generator, others: bool) -> Needle:
    """One key-value line at `depth` (0 the start, 1 the end) of held-out text, or `others`: among other lines."""
    question = VALUE_AT
    room = length - question
    count = room // LINE_TOKENS if others else 1
    keys, values = lines.pairs(count, rng)
    rows = lines.write(keys, values)
    if others:
        asked = round(depth * (count - 1))
        spare = room - rows.size
        body = np.concatenate([_filler(text, spare, rng), rows.ravel()])
    else:
        asked, at = 0, round(depth * (room - LINE_TOKENS - 1))
        filler = _filler(text, room - LINE_TOKENS, rng)
        # A line starts on a line of its own.
        filler[at], filler[-1] = lines.newline, lines.newline
        body = np.concatenate([filler[: at + 1], rows[0], filler[at + 1 :]])
    return Needle(np.concatenate([body, rows[asked, :question]]).astype(np.int64), int(rows[asked, VALUE_AT]))


def _filler(text: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(len(text) - length))
    return text[start : start + length].copy()


@torch.no_grad()
def last_logits(model: Any, prompts: np.ndarray) -> torch.Tensor:
    """Logits [rows, vocabulary] after each prompt [rows, length]."""
    tokens = torch.from_numpy(prompts).to(model.device)
    return model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float()


def needle_grid(
    model: Any, lines: Lines, text: np.ndarray, others: bool, lengths: tuple[int, ...] = LENGTHS,
    per_cell: int = NEEDLES_PER_CELL, seed: int = 1, depths: tuple[float, ...] = DEPTHS,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """The share of needles found by greedy decoding, by length and depth."""
    rng = np.random.default_rng(seed)
    grid: dict[str, dict[str, float]] = {}
    for length in lengths:
        for depth in depths:
            needles = [needle(length, depth, lines, text, rng, others) for _ in range(per_cell)]
            batch = max(1, 32768 // length)
            said: list[int] = []
            for start in range(0, per_cell, batch):
                prompts = np.stack([one.prompt for one in needles[start : start + batch]])
                said += last_logits(model, prompts).argmax(-1).tolist()
            found = [token == one.answer for token, one in zip(said, needles, strict=True)]
            grid.setdefault(str(length), {})[f"{depth:g}"] = sum(found) / per_cell
    return grid


def slices(tokens: np.ndarray, count: int, length: int = SLICE, seed: int = 0) -> np.ndarray:
    """`count` different rows of `length` tokens, spread by chance over whole slices of the text."""
    chosen = np.random.default_rng(seed).permutation(len(tokens) // length)[:count]
    return np.stack([tokens[index * length : (index + 1) * length] for index in np.sort(chosen)]).astype(np.int64)


@torch.no_grad()
def text_losses(model: Any, rows: np.ndarray, batch: int = 16) -> np.ndarray:
    """The loss in nats of every token of rows [n, length] but the first of each: [n, length - 1]."""
    losses = []
    for part in np.array_split(rows, math.ceil(len(rows) / batch)):
        tokens = torch.from_numpy(part).to(model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        losses.append(loss.view(len(part), -1).cpu().numpy())
    return np.concatenate(losses)


def text_quality(
    model: Any, held_out: np.ndarray, train: np.ndarray, held_out_bytes: int, count: int
) -> dict[str, float]:
    """Perplexity and bits per byte of held-out text, and how far training text is below it in nats per token."""
    loss = float(text_losses(model, slices(held_out, count)).mean())
    seen = float(text_losses(model, slices(train, count)).mean())
    tokens_per_byte = len(held_out) / held_out_bytes
    return {
        "held_out_loss_nats": loss,
        "held_out_perplexity": math.exp(loss),
        "bits_per_byte": loss / math.log(2) * tokens_per_byte,
        "train_loss_nats": seen,
        "gap_nats": loss - seen,
    }
