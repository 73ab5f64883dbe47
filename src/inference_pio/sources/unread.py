"""A model from a local folder without its weights: all that a checkpoint would fill is on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from inference_pio.compat import Unread, forget_tie, unread_model, wanted_ties
from inference_pio.errors import CorruptFile, SourceError
from inference_pio.sources.folder import model_class, some, told_as_source_error
from inference_pio.sources.layout import check_folder, weight_files
from inference_pio.sources.quiet import quiet_library
from inference_pio.undo.checkpoint import TensorInFile, read_header

WAY_OUT = "open_model and optimize load it whole"
TRUSTING = "open_model(..., trust_remote_code=True), which loads it whole"


@dataclass(frozen=True)
class UnreadFolder:
    """A model without weights, where its checkpoint has which tensor, and sentences for the report."""

    model: Any
    tensors: dict[str, TensorInFile]
    notes: tuple[str, ...]


def read_skeleton(folder: Path, *, dtype: torch.dtype | Literal["auto"] = "auto") -> UnreadFolder:
    """The model of a folder as `from_pretrained` would make it, in evaluation mode, of whose weights only the headers
    are read. Raises SourceError, CorruptFile.
    """
    check_folder(folder)
    with quiet_library(), told_as_source_error(f"cannot read the model in {folder}", TRUSTING):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise SourceError(f"{folder} holds weights that are quantized already: {WAY_OUT}.")
        tensors = _headers(folder)
        bare = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in tensors.items()}
        unread = unread_model(model_class(config, folder), config, folder, bare, dtype)
    _refuse_what_does_not_fit(unread, folder)
    _tie_what_is_there_twice(unread.model, tensors)
    notes: tuple[str, ...] = ()
    if unread.unexpected:
        notes = (f"the source holds weights that the model does not use: {some(list(unread.unexpected))}",)
    return UnreadFolder(unread.model.eval(), tensors, notes)


def _headers(folder: Path) -> dict[str, TensorInFile]:
    """In the library's order: for "auto" it may take the first floating kind that is stored."""
    found: dict[str, TensorInFile] = {}
    for file in weight_files(folder):
        try:
            found |= sorted(read_header(file).items())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{file} is damaged ({error}): fetch it again.") from error
    return found


def _refuse_what_does_not_fit(unread: Unread, folder: Path) -> None:
    for name, stored, wanted in unread.shapes:
        raise SourceError(f"{folder} holds {name} as {list(stored)}, but this model has {list(wanted)}.")
    if unread.missing:
        raise SourceError(
            f"{folder} holds no weights for {some(list(unread.missing))}: the model would run on random numbers."
        )


def _tie_what_is_there_twice(model: Any, tensors: dict[str, TensorInFile]) -> None:
    """Parameters that are meant to be one, and that the checkpoint has both: one if their values are the same."""
    for name, other in wanted_ties(model).items():
        tied = model.get_parameter(other)
        if model.get_parameter(name) is tied:
            continue
        one, two = tensors.get(name), tensors.get(other)
        if one is None or two is None:
            raise SourceError(f"{name} is to be tied to {other}, and both are stored under other names: {WAY_OUT}.")
        if all(map(torch.equal, _values(one, tied.dtype), _values(two, tied.dtype))):
            path, _, key = name.rpartition(".")
            model.get_submodule(path)._parameters[key] = tied
        else:
            forget_tie(model, name)


def _values(stored: TensorInFile, dtype: torch.dtype, count: int = 2**23) -> Iterator[torch.Tensor]:
    """The values of a tensor as the model has them, a few at a time."""
    itemsize = stored.dtype.itemsize
    for start in range(0, stored.nbytes, count * itemsize):
        size = min(count * itemsize, stored.nbytes - start)
        part = TensorInFile(stored.file, stored.name, stored.offset + start, size, stored.dtype, (size // itemsize,))
        yield part.read().to(dtype)
