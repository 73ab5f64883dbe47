"""The tokenizer and the tokens of both halves of the text, made once per work folder and shared by all models."""

from __future__ import annotations

import fcntl
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .corpus import documents, stream
from .tokenizer import load_tokenizer, train_tokenizer

SEED = 0


@dataclass(frozen=True)
class Prepared:
    """What all models share."""

    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int
    python: str
    """Whose standard library the text is: a prepared folder may be carried to a machine with another Python."""


def prepare(work: Path) -> Prepared:
    """Read what the folder holds, or make it first; several processes may ask at once."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (work / "train.npy").exists():
            _make(work)
    facts = json.loads((work / "prepared.json").read_text(encoding="utf-8"))
    return Prepared(
        load_tokenizer(work),
        np.load(work / "train.npy", allow_pickle=False),
        np.load(work / "held_out.npy", allow_pickle=False),
        facts["held_out_bytes"],
        facts["python"],
    )


def _make(work: Path) -> None:
    texts, held_out = ([text for _, text in documents(held_out=kept)] for kept in (False, True))
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(work / "tokenizer.json"))
    np.save(work / "held_out.npy", stream(held_out, tokenizer))
    facts = {"python": platform.python_version(), "held_out_bytes": sum(len(text.encode()) for text in held_out)}
    (work / "prepared.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    # The training tokens come last: where they are, everything is.
    np.save(work / "train.part.npy", stream(texts, tokenizer, SEED))
    (work / "train.part.npy").replace(work / "train.npy")
