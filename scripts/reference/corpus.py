"""The text: the running Python's standard library and `pydoc_data.topics`, split by a fixed list of held-out names."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer

HELD_OUT = frozenset(
    line
    for line in (Path(__file__).parent / "held_out.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
# Tables rather than text, and other people's packages.
LEFT_OUT = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data"})
LARGEST_FILE_BYTES = 400_000


def _files() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.intersection(name.parts) or path.stat().st_size > LARGEST_FILE_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield name.as_posix(), text


def documents(held_out: bool = False) -> list[tuple[str, str]]:
    """(name, text) pairs in a fixed order: the training documents, or with `held_out` the ones kept back.

    >>> "heapq.py" in [name for name, _ in documents(held_out=True)]
    True
    """
    named = [*_files(), *((f"topic:{name}", text) for name, text in sorted(topics.items()))]
    return [(name, text) for name, text in named if (name in HELD_OUT) == held_out]


def stream(texts: list[str], tokenizer: Tokenizer, seed: int | None = None) -> np.ndarray:
    """All texts as one uint16 row of tokens, an end-of-text token after each; `seed` shuffles the documents first."""
    order = list(range(len(texts)))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    end = tokenizer.token_to_id("<|endoftext|>")
    encoded = tokenizer.encode_batch([texts[index] for index in order], add_special_tokens=False)
    return np.concatenate([np.array([*row.ids, end], dtype=np.uint16) for row in encoded])
