"""What must lie in a model folder before anything is read from it."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from inference_pio.errors import CorruptFile, SourceError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def check_folder(folder: Path) -> None:
    """Raise `SourceError` or `CorruptFile` unless `folder` holds a configuration and whole safetensors files."""
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} has no config.json: {_what_it_is(folder)}")
    _json(folder / "config.json")
    for path in weight_files(folder):
        _check_safetensors(path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights; names that lead out of the folder are refused."""
    if (folder / _INDEX).is_file():
        index = _json(folder / _INDEX)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(map(_is_plain_name, weight_map.values())):
            raise CorruptFile(f"{folder / _INDEX} does not map tensors to files of its own folder: fetch it again.")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if not (folder / _SINGLE).is_file():
        raise SourceError(_no_weights(folder))
    return [folder / _SINGLE]


def _what_it_is(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "it holds an adapter; give the folder of the model that it was trained on."
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        return f"it holds {', '.join(ggufs)}; give the path of that file."
    return "it is not a model folder in the Hugging Face layout."


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if not pickled:
        return f"{folder} has a config.json but no weights: {_SINGLE} is missing."
    return (
        f"{folder} holds its weights only in pickled form ({pickled[0]}), which can run code when read: "
        "convert them to safetensors where you trust them (`save_pretrained` writes that form)."
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptFile(f"{path} is not valid JSON ({error}): fetch it again.") from error


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and PurePath(name).name == name and name not in ("", "..")


def _check_safetensors(path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"{path} is missing though {_INDEX} lists it: fetch it again.")
    try:
        with safe_open(path, framework="pt"):  # reads the head, and compares it with the length of the file
            pass
    except SafetensorError as error:
        raise CorruptFile(f"{path} is damaged or cut short ({error}): fetch it again.") from error
