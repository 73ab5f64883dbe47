"""Write a model as a checkpoint that others read: the hub's names, compressed-tensors for codes, or plain weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from inference_pio.artifact.checkpoint_tensors import CheckpointTensors
from inference_pio.artifact.layout import Int4As, quantization_config
from inference_pio.artifact.manifest import folder_named
from inference_pio.artifact.plain_tensors import PlainTensors
from inference_pio.artifact.save import SPARE_BYTES
from inference_pio.artifact.shards import Shards
from inference_pio.compat import meta_model, take_hub_names
from inference_pio.errors import ArtifactError, InvalidSetting, UnknownName
from inference_pio.files import is_folder, partial_folder, replace_folder_atomically, require_free_bytes, storage_errors
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.manager.session import session_of
from inference_pio.plan.make import check_model
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.streaming.hooks import true_values

COMPRESSED, PLAIN = "compressed-tensors", "hf"
FORMATS = (COMPRESSED, PLAIN)
BESIDE = ("token", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "preprocessor", "processor",
          "video_preprocessor", "spiece")  # fmt: skip
"""How the names of files begin that a tokenizer or a processor is read from."""
NOTES = {
    "wide": "int4 is written in 8 bits, since the layout has no middles: the weights stay, and take twice the room "
    "(int4='symmetric' writes 4 bits and rounds anew).",
    "symmetric": "int4 was rounded anew, since the layout has no middles: the loss of the rounding about doubles.",
    "asymmetric": "int4 was rounded anew, since the layout has whole zeros in the place of middles: the loss of the "
    "rounding nearly doubles. transformers 5.23 does not read such weights, 5.17 not such experts; vLLM is known to.",
}


REASONS = {
    COMPRESSED: "no compressed weights: compress them to int8, fp8 or int4 first",
    PLAIN: "nothing to export: prune it with structured_pruning and allocation='uniform' first",
}


@dataclass(frozen=True)
class Export:
    """What was written: `formats` counts weights by how they are stored (plain ones by dtype), `weights_moved` is root
    mean square over the int4 weights, relative, that rounding anew has cost them."""

    folder: Path
    format: str
    formats: Mapping[str, int]
    kept: tuple[str, ...]
    weight_bytes: int
    weights_moved: float | None
    notes: tuple[str, ...]

    @property
    def has_zeros(self) -> bool:
        """Whether packed weights have zeros, which not every version of transformers reads."""
        return any(name.endswith("with zeros") for name in self.formats)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder), "format": self.format, "formats": dict(self.formats),
            "kept": list(self.kept), "weight_bytes": self.weight_bytes,
            "weights_moved": self.weights_moved, "notes": list(self.notes),
        }  # fmt: skip


def export(
    model: nn.Module, folder: str | os.PathLike[str], format: str = COMPRESSED, *, int4: Int4As = "wide",
    tokenizer: Any = None,
) -> Export:  # fmt: skip
    """Write a model as transformers, vLLM and others read it: one that is compressed to int8, fp8 or int4, or with
    `format` "hf" one that is pruned and still of its class, as all weights of a kind are of one size.

    `int4` says what int4 becomes, since the layout has no middles: "wide" keeps the weights, in 8 bits; "symmetric"
    and "asymmetric" round them anew to 4. Without a tokenizer, the files of the folder the model came from are copied.
    Raises ArtifactError for a model that no checkpoint of this layout can hold or a folder with something in it,
    StorageError or DiskFull where it cannot be written; then nothing partial is left.
    """
    check_model(model)
    _check_words(format, int4, tokenizer)
    session = session_of(model)
    compressed = any(isinstance(module, CompressedModule) for module in model.modules())
    if session is None or (format == COMPRESSED and not compressed):
        raise ArtifactError(
            f"this model has {REASONS[format]}, or write it as it is with model.save_pretrained(folder)."
        )
    if not type(model).__module__.startswith("transformers."):
        raise ArtifactError(f"{type(model).__name__} is not of the transformers library: others cannot load it.")
    final = folder_named(folder).absolute()
    refuse_filled(final)
    with session.gate.reading(), true_values(model):
        require_free_bytes(
            final, tensor_bytes(model) * (2 if format == COMPRESSED and int4 == "wide" else 1) + SPARE_BYTES
        )
        with storage_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(final) as built:
            with storage_errors(built):
                twin = _bones(model, built, tokenizer)
                written = _plain(model, twin, built) if format == PLAIN else _compressed(model, twin, built, int4)
            replace_folder_atomically(built, final)
    return replace(written, folder=final)


def _check_words(format: str, int4: str, tokenizer: Any) -> None:
    for kind, word, known in (("export format", format, FORMATS), ("int4 form", int4, get_args(Int4As))):
        if word not in known:
            raise UnknownName(kind, word, known)
    if format == PLAIN and int4 != "wide":
        raise InvalidSetting(
            f"int4={int4!r} says what codes become, and format 'hf' holds plain weights: leave it out."
        )
    if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise InvalidSetting(f"a tokenizer must have a save_pretrained, and {tokenizer!r} has none.")


def refuse_filled(final: Path) -> None:
    """Raise ArtifactError for a place that has something in it: nothing is overwritten."""
    with storage_errors(final):
        filled = final.is_file() or (final.is_dir() and any(final.iterdir()))
    if filled:
        raise ArtifactError(f"{final} exists and is not empty, so it is not written to: choose another folder.")


def _bones(model: Any, built: Path, tokenizer: Any) -> Any:
    """What the class builds of the configuration, which is written with the other small files."""
    model.config.save_pretrained(built)
    twin = meta_model(built, type(model).__name__)
    take_hub_names(twin, model)
    _write_companions(model, tokenizer, built)
    return twin


def _compressed(model: Any, twin: Any, built: Path, int4: Int4As) -> Export:
    tensors = CheckpointTensors(model, twin, int4)
    written = _write(tensors, built)
    _complete_config(built / "config.json", model, quantization_config(tensors.schemes, tensors.kept))
    grouped = any(module.format == "int4" for module in model.modules() if isinstance(module, CompressedModule))
    return Export(
        built, COMPRESSED, {str(scheme): len(names) for scheme, names in tensors.schemes.items()}, tuple(tensors.kept),
        written, tensors.moved if grouped else None, (NOTES[int4],) if grouped else (),
    )  # fmt: skip


def _plain(model: Any, twin: Any, built: Path) -> Export:
    tensors = PlainTensors(model, twin)
    written = _write(tensors, built)
    _complete_config(built / "config.json", model)
    return Export(built, PLAIN, dict(tensors.counts), (), written, None, ())


def _write(tensors: Iterable[tuple[str, Tensor]], built: Path) -> int:
    shards = Shards(built)
    for name, tensor in tensors:
        shards.add(name, tensor)
    shards.close()
    return shards.total_bytes


def _complete_config(file: Path, model: Any, quantization: Mapping[str, Any] | None = None) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    config["architectures"] = config.get("architectures") or [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")  # as it is now, not as it was loaded
    if quantization is not None:
        config["quantization_config"] = quantization
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_companions(model: Any, tokenizer: Any, built: Path) -> None:
    """The generation config, and what turns text and pictures into tokens."""
    source = Path(str(getattr(model.config, "name_or_path", "") or "."))
    if tokenizer is None and model.config.name_or_path and is_folder(source):
        for file in sorted(source.iterdir()):
            if file.is_file() and file.name.startswith(BESIDE):
                shutil.copyfile(file, built / file.name)
    for extra in (getattr(model, "generation_config", None), tokenizer):
        if extra is not None:
            extra.save_pretrained(built)
