"""Read an exported checkpoint back as others do, and hold its answers against the model that it was made from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.artifact.manifest import folder_named
from inference_pio.errors import ArtifactError, MissingExtra
from inference_pio.measure.quality import Quality, compare
from inference_pio.measure.reference import Reference
from inference_pio.plan.skeleton import device_of
from inference_pio.sources.quiet import quiet_library, quiet_stderr


def check_export(
    model: nn.Module, folder: str | os.PathLike[str], tokens: Tensor,
    progress: Callable[[str, float], None] | None = None,
) -> Quality:  # fmt: skip
    """How near the checkpoint in `folder`, read by transformers, is to `model` on tokens [windows, window].

    The weights are plain in memory then, in the model's dtype. Raises MissingExtra where they are codes and the package
    compressed-tensors is not there, ArtifactError where transformers does not read the checkpoint.
    """
    if _holds_codes(folder_named(folder)):
        require_reader()
    other = _read(model, folder)
    with Reference.record(model, tokens, progress=progress) as reference:
        return compare(reference, other, progress=progress)


def require_reader() -> None:
    try:
        import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise MissingExtra("compressed-tensors", "export", "reading an exported checkpoint back") from error


def _holds_codes(folder: Path) -> bool:
    config = folder / "config.json"
    return not config.is_file() or b'"quantization_config"' in config.read_bytes()


def _read(model: Any, folder: str | os.PathLike[str]) -> Any:
    place = folder_named(folder).absolute()
    try:
        with quiet_library(), quiet_stderr():
            other = type(model).from_pretrained(str(place), dtype=model.dtype, local_files_only=True)
            other = other.eval().to(device_of(model))
            with torch.no_grad():
                other(torch.zeros((1, 1), dtype=torch.int64, device=device_of(model)))  # its weights are made now
    except Exception as error:  # whatever does not fit breaks the library in a way of its own
        raise ArtifactError(f"transformers does not read {place}: {error}") from error
    return other
