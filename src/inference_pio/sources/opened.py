"""What `open_model` answers with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class OpenedModel:
    """A model in evaluation mode, with its tokenizer and where both came from.

    `tokenizer` is None where the source has none. `folder` holds the files that the weights were read from.
    `notes` are sentences that a report must show.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    origin: str
    notes: tuple[str, ...]
    folder: Path | None
