"""`open_model`: one door for every place a model can come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from inference_pio.errors import InvalidSetting, SourceError
from inference_pio.files import is_folder
from inference_pio.sources import demo
from inference_pio.sources.folder import read_folder
from inference_pio.sources.gguf import converted
from inference_pio.sources.hub import hub_folder
from inference_pio.sources.opened import OpenedModel

KINDS = "Give a folder in the Hugging Face layout, a .gguf file, a hub id, or 'demo'."


@dataclass(frozen=True)
class Found:
    """A source as a local folder in the Hugging Face layout."""

    name: str
    origin: str
    folder: Path
    notes: tuple[str, ...] = ()


def open_model(
    spec: str | os.PathLike[str],
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> OpenedModel:
    """Open "demo", a local folder in the Hugging Face layout, a `.gguf` file, or a hub id.

    `dtype="auto"` is the one that the weights are stored in; `device=None` is the CPU. What is shown meanwhile goes to
    standard error, and only with `progress`.

    Raises `InvalidSetting`, `SourceError` (`DownloadFailed`, `ChecksumMismatch`, `CorruptFile`), `MissingExtra`,
    `StorageError`, `DiskFull`.

    >>> open_model("./nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    inference_pio.errors.SourceError: there is no folder or file ./nowhere. ...
    """
    check_dtype(dtype)
    target = None if device is None else device_named(device)
    found = find_source(spec, trust_remote_code=trust_remote_code, progress=progress)
    read = read_folder(found.folder, dtype=dtype, trust_remote_code=trust_remote_code)
    model = read.model if target is None else read.model.to(target)
    return OpenedModel(model, read.tokenizer, found.name, found.origin, found.notes + read.notes, found.folder)


def find_source(spec: str | os.PathLike[str], *, trust_remote_code: bool = False, progress: bool = True) -> Found:
    """The folder of a source, fetched or converted where it is not there yet; nothing is read from it. Raises as
    `open_model`.
    """
    if not os.fspath(spec).strip():
        raise SourceError(f"no model is named. {KINDS}")
    if spec == "demo":
        copy = demo.demo_folder(demo.DEMO, progress=progress)
        return Found(demo.NAME, demo.ORIGIN, copy.folder, demo.NOTES + copy.notes)
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - pathlib's own raises where a user has no home
    if is_folder(path):
        return Found(path.resolve().name, f"folder {path}", path.resolve())
    if path.suffix.lower() == ".gguf":
        copy = converted(path, progress=progress)
        return Found(path.stem, f"file {path}", copy.folder, copy.notes)
    if _exists(path) or _is_meant_as_path(spec):
        what = f"{path} is neither a folder nor a .gguf file" if _exists(path) else f"there is no folder or file {spec}"
        raise SourceError(f"{what}. {KINDS}")
    model_id = os.fspath(spec)
    folder = hub_folder(model_id, trust_remote_code=trust_remote_code, progress=progress)
    return Found(model_id, f"hub {model_id}", folder)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the system takes no such name
        return False


def _is_meant_as_path(spec: str | os.PathLike[str]) -> bool:
    text = os.fspath(spec)
    return not isinstance(spec, str) or text.startswith((".", "~", "/")) or Path(text).is_absolute() or "\\" in text


def check_dtype(dtype: object) -> None:
    """Raise InvalidSetting for what weights cannot be read in."""
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidSetting(f"dtype={dtype!r}: give 'auto' or a floating-point torch.dtype, as in torch.bfloat16.")


def device_named(device: str | torch.device) -> torch.device:
    """A device that is there, on this machine, in this build of torch. Raises InvalidSetting."""
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise InvalidSetting(f"device={device!r} cannot be used with torch {torch.__version__}: {said}.") from error
    return target
