"""The default text to evaluate and calibrate on: the language reference that every Python carries.

It is split by topic, and a paragraph that both parts would hold stays in the evaluation part alone: nothing a model was
calibrated on is ever evaluated.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from typing import Any

import torch
from torch import Tensor

from inference_pio.errors import MeasureError


def evaluation_text() -> str:
    """The part of the reference that quality is measured on, about 230,000 characters.

    >>> "assert" in evaluation_text()
    True
    """
    return "\n\n".join(_parts()[0])


def calibration_text() -> str:
    """The part that optimizations may learn from; it shares no paragraph with `evaluation_text()`.

    >>> set(calibration_text().split("\\n\\n")) & set(evaluation_text().split("\\n\\n"))
    set()
    """
    return "\n\n".join(_parts()[1])


def text_source() -> str:
    """Which text the numbers stand on: two Pythons carry different references, hence the hash."""
    digest = hashlib.sha256(evaluation_text().encode()).hexdigest()[:12]
    return f"pydoc_data.topics of Python {platform.python_version()}, evaluation part, sha256 {digest}"


def evaluation_tokens(tokenizer: Any, vocab_size: int | None = None, tokens: int = 8192, window: int = 512) -> Tensor:
    """Windows spread evenly over the evaluation text, int64 [windows, window], that score at least `tokens` tokens.

    A window of L tokens scores L - 1: its first has nothing before it. Raises MeasureError without a tokenizer, where
    the text is too short, or where the tokenizer knows more tokens than the model.
    """
    if tokenizer is None:
        raise MeasureError(
            "quality cannot be measured without a tokenizer: on random tokens it means nothing. "
            "Give tokenizer=..., or token tensors of your own as tokens=[windows, window]"
        )
    ids = torch.tensor(tokenizer(evaluation_text(), add_special_tokens=False, verbose=False)["input_ids"])
    _check_vocabulary(ids, vocab_size)
    return _windows(ids, _opening(tokenizer), tokens, window)


def sampled_tokens(vocab_size: int, count: int, seed: int = 0) -> Tensor:
    """Seeded random tokens, int64 [1, count]: good enough to time a model on, never to judge it.

    >>> sampled_tokens(100, 8).shape
    torch.Size([1, 8])
    """
    return torch.randint(vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))


def _windows(ids: Tensor, opening: list[int], tokens: int, window: int) -> Tensor:
    body = window - len(opening)
    if window < 2 or body < 1 or tokens < 1:
        raise MeasureError(f"cannot score {tokens} tokens in windows of {window}: take windows of 2 tokens or more")
    wanted, there = -(-tokens // (window - 1)), ids.numel() // body
    if wanted > there:
        raise MeasureError(
            f"scoring {tokens} tokens needs {wanted} windows of {window}, and the evaluation text makes {there} with "
            f"this tokenizer: ask for at most {there * (window - 1)} tokens, or give token tensors as tokens=..."
        )
    rows = ids[: there * body].view(there, body)[[index * there // wanted for index in range(wanted)]]
    return torch.cat([torch.tensor(opening, dtype=torch.int64).expand(wanted, -1), rows], dim=1)


def _opening(tokenizer: Any) -> list[int]:
    """The start token, where the tokenizer itself puts one before every text."""
    start = getattr(tokenizer, "bos_token_id", None)
    return [start] if start is not None and tokenizer("a")["input_ids"][:1] == [start] else []


def _check_vocabulary(ids: Tensor, vocab_size: int | None) -> None:
    if vocab_size is not None and int(ids.max()) >= vocab_size:
        raise MeasureError(
            f"the tokenizer gives token {int(ids.max())} and the model knows {vocab_size} tokens: "
            "this is another model's tokenizer"
        )


@functools.cache
def _parts() -> tuple[list[str], list[str]]:
    """Every second topic in alphabetic order; each paragraph once, the evaluation part first to choose."""
    topics = _topics()
    seen: set[str] = set()
    names = sorted(topics)
    evaluation = _unseen_paragraphs([topics[name] for name in names[0::2]], seen)
    return evaluation, _unseen_paragraphs([topics[name] for name in names[1::2]], seen)


def _unseen_paragraphs(texts: list[str], seen: set[str]) -> list[str]:
    kept = []
    for paragraph in "\n\n".join(texts).split("\n\n"):
        if paragraph.strip() and paragraph not in seen:
            seen.add(paragraph)
            kept.append(paragraph)
    return kept


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise MeasureError(
            "this Python comes without pydoc_data, the default text: give texts or token tensors of your own"
        ) from error
    return dict(topics)
