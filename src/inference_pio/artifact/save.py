"""Write an optimized model: its tensors as they are now, its decisions, its tokenizer; whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from inference_pio.artifact.manifest import FILE, TENSORS, Manifest, SavedStep, folder_named, read_manifest
from inference_pio.compat import ATTENTION_KEY, EXPERTS_KEY
from inference_pio.errors import ArtifactError, InvalidSetting
from inference_pio.files import partial_folder, replace_folder_atomically, require_free_bytes, sha256_of, storage_errors
from inference_pio.formats.compressed_module import portable_tensor
from inference_pio.manager.session import Session, session_of
from inference_pio.measure.measurement import plain_json
from inference_pio.plan.make import check_model
from inference_pio.streaming.hooks import true_values
from inference_pio.undo.places import configs_of
from inference_pio.undo.slots import storage_key

SPARE_BYTES = 32 * 2**20


def save(model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None) -> Path:
    """Save an optimized model at its optimized size; `inference_pio.load(folder)` needs nothing else.

    Raises ArtifactError for a model that is not optimized or a folder that is something else, StorageError or
    DiskFull where it cannot be written; then nothing partial is left and an older save is as it was.
    """
    check_model(model)
    if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise InvalidSetting(f"a tokenizer must have a save_pretrained, and {tokenizer!r} has none.")
    session = session_of(model)
    if session is None or not session.receipts:
        raise ArtifactError("this model is not optimized: save it with model.save_pretrained(folder).")
    final = folder_named(folder).absolute()
    refuse_foreign(final)
    with session.gate.reading(), true_values(model):
        tensors, ties = _tensors_of(model)
        require_free_bytes(final, sum(tensor.nbytes for tensor in tensors.values()) + SPARE_BYTES)
        with storage_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(final) as built:
            _write(model, session, tensors, ties, tokenizer, built)
            replace_folder_atomically(built, final)
    return final


def _write(
    model: nn.Module, session: Session, tensors: dict[str, torch.Tensor], ties: dict[str, str], tokenizer: Any,
    built: Path,
) -> None:  # fmt: skip
    with storage_errors(built):
        save_file(tensors, built / TENSORS)
        config = _original_config(model, session)
        if config is not None:
            config.save_pretrained(built)
        for extra in (getattr(model, "generation_config", None), tokenizer):
            if extra is not None:
                extra.save_pretrained(built)
        manifest = _manifest(model, session, ties, built, sum(t.nbytes for t in tensors.values()))
        (built / FILE).write_bytes(manifest.to_bytes())


def _manifest(model: nn.Module, session: Session, ties: dict[str, str], built: Path, weight_bytes: int) -> Manifest:
    receipts = session.receipts
    return Manifest(
        model_class=type(model).__name__,
        library="transformers" if type(model).__module__.startswith("transformers.") else "own",
        attention=_library_names(session, model, ATTENTION_KEY), experts=_library_names(session, model, EXPERTS_KEY),
        training=model.training,
        steps=[
            SavedStep(
                name=receipt.name, stage=receipt.stage, parameters=receipt.parameters,
                sites=[site.path for site in receipt.acted], decision=receipt.decision,
            )
            for receipt in receipts
        ],
        receipts=[receipt.to_json() for receipt in receipts],
        plan={
            "profile": session.profile, "skipped": [left.to_json() for left in session.left],
            "verdict": plain_json(session.verdict.to_json()) if session.verdict is not None else None,
        },
        ties=ties, trainable=[name for name, parameter in model.named_parameters() if parameter.requires_grad],
        tensors_sha256=sha256_of(built / TENSORS), weight_bytes=weight_bytes,
        files=sorted(path.name for path in built.iterdir()),
    )  # fmt: skip


def _tensors_of(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every parameter and buffer once, non-persistent ones too; the other names of tied ones beside."""
    first: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    used: set[int] = set()
    for name, tensor, portable in _named(model):
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        data = portable.detach()
        shares = storage_key(data) in used or data.untyped_storage().nbytes() != data.nbytes
        used.add(storage_key(data))
        tensors[name] = data.clone() if shares else data.contiguous()  # the format holds no views of one storage
    return tensors, ties


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Every tensor by name, and as a file holds it."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, parameter
    for name, buffer in model.named_buffers(remove_duplicate=False):
        path, _, key = name.rpartition(".")
        yield name, buffer, portable_tensor(model.get_submodule(path), key, buffer)


def _original_config(model: nn.Module, session: Session) -> Any:
    """The configuration without names of our own attention functions, which another process does not know."""
    return getattr(model, "config", None)


def _library_names(session: Session, model: nn.Module, key: str) -> dict[str, str]:
    """Which of the library's functions each configuration asked for before we did."""
    bones = session.born if session.born is not None else model
    found = {name: vars(config).get(key) for name, config in configs_of(bones)}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def refuse_foreign(final: Path) -> None:
    """Raise ArtifactError for a place that a save would not only fill, or replace an older save in: nothing is lost."""
    with storage_errors(final):
        if not final.is_file() and not (final.is_dir() and any(final.iterdir())):
            return
        if final.is_file() or not (final / FILE).is_file():
            raise ArtifactError(
                f"{final} exists and is not a model saved by inference-pio, so it is not overwritten: "
                "choose another folder."
            )
        ours = {FILE, *_files_of(final)}
        foreign = sorted(path.name for path in final.iterdir() if path.name not in ours)
    if foreign:
        raise ArtifactError(
            f"{final} holds a saved model and {', '.join(foreign[:3])} ({len(foreign)} in all) that is not of it and "
            "would be lost: move that away, or choose another folder."
        )


def _files_of(folder: Path) -> list[str]:
    """What an older save wrote; a manifest that cannot be read vouches for nothing but the tensors."""
    try:
        return read_manifest(folder).files or [path.name for path in folder.iterdir()]  # saved before files were listed
    except ArtifactError:
        return [TENSORS]
