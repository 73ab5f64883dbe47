"""A `.gguf` file, converted once to a safetensors folder in the user's cache; offline and without `gguf` from then on.

The weights are stored as float32, exactly as dequantized.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference_pio.errors import SourceError
from inference_pio.files import (
    partial_folder,
    replace_folder_atomically,
    require_free_bytes,
    sha256_of,
    storage_errors,
)
from inference_pio.sources.cache import cache_room
from inference_pio.sources.folder import read_folder, told_as_source_error
from inference_pio.sources.gguf_header import GgufHeader, read_header, require_gguf_packages
from inference_pio.sources.manifest import Manifest, damage, read_manifest, write_manifest
from inference_pio.sources.progress import phase_bar, say
from inference_pio.sources.quiet import quiet_library, quiet_stderr

_FLOAT32_BYTES = 4
_TOKENIZER_AND_CONFIG_BYTES = 32_000_000
_PLAIN_TYPES = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True)
class Converted:
    """A converted folder, what its manifest tells, and sentences for the report."""

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...]


def converted(path: Path, *, progress: bool = True) -> Converted:
    """The converted folder of a `.gguf` file; made now when there is none, or when it was damaged.

    Raises `SourceError`, `CorruptFile`, `MissingExtra`, `StorageError`, `DiskFull`; nothing partial stays.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}.")
    sha256 = sha256_of(path)
    found, fault = look_up(sha256, progress=progress)
    return found or convert(path, sha256, fault=fault, progress=progress)


def look_up(sha256: str, *, progress: bool = True) -> tuple[Converted | None, str | None]:
    """The folder converted from the file of that sum, or None; and what is wrong with the one that was there."""
    folder = cache_room("gguf") / sha256
    if not folder.exists():
        return None, None
    manifest = read_manifest(folder)
    fault = "its manifest cannot be read" if manifest is None else damage(folder, manifest)
    if manifest is not None and fault is None:
        return Converted(folder, manifest, _notes(manifest)), None
    say(f"The converted copy in {folder} is damaged ({fault}): making it anew.", progress)
    return None, fault


def convert(path: Path, sha256: str, *, fault: str | None = None, progress: bool = True) -> Converted:
    """Convert `path`, whose sum is `sha256`, into the cache, over whatever lies there."""
    require_gguf_packages()
    header = read_header(path)
    folder = cache_room("gguf") / sha256
    require_free_bytes(folder, header.elements * _FLOAT32_BYTES + _TOKENIZER_AND_CONFIG_BYTES)
    say(f"Converting {path.name} to safetensors in {folder} (once).", progress)
    with partial_folder(folder) as partial, phase_bar(path.name, phases=5, shown=progress) as begin:
        notes = _build(path, header, partial, begin)
        manifest = write_manifest(
            partial, source_name=path.name, source_sha256=sha256, tensor_types=header.tensor_types, notes=notes
        )
        replace_folder_atomically(partial, folder)
    remade = (f"the converted copy in the cache was damaged ({fault}) and was made anew",) if fault else ()
    return Converted(folder, manifest, _notes(manifest) + remade)


def _build(path: Path, header: GgufHeader, folder: Path, begin: Callable[[str], None]) -> tuple[str, ...]:
    with quiet_library(), quiet_stderr(), told_as_source_error(f"cannot convert {path} ({header.architecture})"):
        begin("unpacking the weights")
        model = _plain_copy(*_dequantized(path))
        begin("reading the tokenizer")
        has_tokenizer = "tokenizer.ggml.model" in header.settings
        tokenizer = AutoTokenizer.from_pretrained(**_place(path)) if has_tokenizer else None
        begin("writing")
        with storage_errors(folder):
            model.save_pretrained(str(folder))
            if tokenizer is not None:
                tokenizer.save_pretrained(str(folder))
    begin("comparing")
    _require_same_weights(model, read_folder(folder).model, path)
    begin("hashing")
    return _notes_on_conversion(model, header)


def _dequantized(path: Path) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, **_place(path)}
    if hasattr(transformers, "GgufConfig"):  # releases that have it may keep the weights packed unless told
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, report = AutoModelForCausalLM.from_pretrained(**options)
    return model, report


def _place(path: Path) -> dict[str, str]:
    # absolute: a bare name would be looked for in the working folder first
    return {"pretrained_model_name_or_path": str(path.parent.absolute()), "gguf_file": str(path.absolute())}


def _plain_copy(model: Any, report: dict[str, Any]) -> Any:
    """The same weights in a model that never was quantized: the library refuses to save one read from a `.gguf`."""
    if report["missing_keys"]:
        raise SourceError(f"the file holds no weights for {', '.join(sorted(report['missing_keys'])[:3])}")
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _require_same_weights(written: Any, read: Any, path: Path) -> None:
    expected, got = written.state_dict(), read.state_dict()
    if expected.keys() != got.keys() or not all(torch.equal(expected[name], got[name]) for name in expected):
        raise SourceError(f"cannot convert {path}: the weights read back differ from those that were written.")


def _notes_on_conversion(model: Any, header: GgufHeader) -> tuple[str, ...]:
    used = sum(parameter.numel() for parameter in model.parameters())
    if used == header.elements:
        return ()
    return (f"the source file holds {header.elements:,} numbers and the model takes {used:,} of them",)


def _notes(manifest: Manifest) -> tuple[str, ...]:
    main = next(iter(manifest.tensor_types), "unknown")
    counted = ", ".join(f"{count} x {name}" for name, count in manifest.tensor_types.items())
    bits = re.search(r"\d+", main)
    kind = main if main in _PLAIN_TYPES or bits is None else f"{bits.group()}-bit ({main})"
    return (
        f"weights were {kind} in the source file (tensors: {counted}) and are read as float32, exactly as dequantized",
        *manifest.notes,
    )
