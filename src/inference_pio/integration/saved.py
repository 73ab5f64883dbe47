"""A model that `inference_pio.save` wrote, opened as other sources are: with its tokenizer and a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from inference_pio.artifact import load
from inference_pio.artifact.manifest import FILE
from inference_pio.files import is_folder
from inference_pio.sources import OpenedModel
from inference_pio.sources.folder import told_as_source_error

TOKENIZER = "tokenizer_config.json"


def is_saved(spec: str) -> bool:
    """Whether a source is a folder that `inference_pio.save` wrote."""
    return is_folder(spec) and Path(spec, FILE).is_file()


def open_saved(spec: str, device: str | None = None) -> OpenedModel:
    """The optimized model in a folder, with its tokenizer if one was saved with it.

    Raises ArtifactError; InvalidSetting for a device that is not there.
    """
    folder = Path(spec)
    model: Any = load(folder, device=device or "cpu")
    return OpenedModel(model, _tokenizer(folder), folder.resolve().name, f"saved in {folder}", (), folder)


def _tokenizer(folder: Path) -> Any:
    if not (folder / TOKENIZER).is_file():
        return None
    with told_as_source_error(f"cannot read the tokenizer in {folder}"):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
