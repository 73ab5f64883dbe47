"""Load a saved model: rebuild its structure on the meta device from recorded decisions, then fill in the tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from inference_pio.artifact.manifest import TENSORS, Manifest, SavedStep, folder_named, read_manifest
from inference_pio.compat import ATTENTION_KEY, EXPERTS_KEY, meta_model
from inference_pio.contract.optimization import OptimizationInterface, Stage, Step
from inference_pio.contract.receipt import Receipt
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.contract.site import Site
from inference_pio.errors import ArtifactError, InferencePioError, InvalidSetting, VaultError
from inference_pio.files import sha256_of
from inference_pio.formats.compressed_module import is_sized_by_data, portable_tensor
from inference_pio.manager.adopt import adopt
from inference_pio.manager.manager import ModularOptimizationManager, get_optimization_manager
from inference_pio.manager.session import session_of
from inference_pio.plan.make import check_model
from inference_pio.plan.rehearse import act
from inference_pio.plan.skeleton import skeleton_of
from inference_pio.sources.open import device_named, open_model
from inference_pio.streaming.hooks import true_values
from inference_pio.undo.checkpoint import read_header
from inference_pio.undo.journal import Journal
from inference_pio.undo.places import configs_of
from inference_pio.undo.vault import Vault

NOT_HERE = "no: originals not here (load(folder, checkpoint=<the original's folder>) brings them)"
REBUILT = {stage.name.lower() for stage in (Stage.STRUCTURE, Stage.STORAGE)}


def load(
    folder: str | os.PathLike[str], *, model: nn.Module | None = None,
    checkpoint: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu", verify: bool = True,
    manager: ModularOptimizationManager | None = None,
) -> nn.Module:  # fmt: skip
    """Load what `save` wrote, without the original, calibration or pickle; its logits are those that were saved.

    `model` gives the architecture of a model that is not of the transformers library. `checkpoint` names the
    original's folder: then the model is optimized anew from it by the recorded decisions, and can be taken back.
    `verify` holds the tensor file against its recorded SHA-256. Raises ArtifactError; InvalidModel and InvalidSetting
    for what is no model, folder or device.
    """
    target = device_named(device)
    if model is not None:
        check_model(model)
    folder = folder_named(folder).absolute()
    manifest = read_manifest(folder)
    manager = manager or get_optimization_manager()
    tensors = _read_tensors(folder, manifest, verify)
    if checkpoint is not None:
        return _judged(_reload(folder, manifest, folder_named(checkpoint), tensors, target, manager), manifest)
    bones = skeleton_of(model) if model is not None else _skeleton_from(folder, manifest)
    _rebuild(bones, manifest, manager.registry, target)
    _fill(bones, tensors, manifest)
    bones.train(manifest.training)
    bones.to(target)
    adopt(bones, [Receipt.from_json(entry) for entry in manifest.receipts if entry["stage"] in REBUILT], NOT_HERE)
    return _judged(_apply_the_rest(bones, manifest, manager), manifest)


def _judged(model: nn.Module, manifest: Manifest) -> nn.Module:
    """With what a quality guard said of it when it was saved."""
    session = session_of(model)
    if session is not None:
        session.verdict = manifest.verdict
    return model


def _read_tensors(folder: Path, manifest: Manifest, verify: bool) -> dict[str, torch.Tensor]:
    file = folder / TENSORS
    try:
        if verify and sha256_of(file) != manifest.tensors_sha256:
            raise ArtifactError(f"{file} is damaged: its checksum is not the recorded one. Save the model again.")
        return {name: entry.read() for name, entry in read_header(file).items()}  # aligned memory, never a mapped file
    except (OSError, ValueError, KeyError, TypeError, VaultError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}): save the model again.") from error


def _skeleton_from(folder: Path, manifest: Manifest) -> nn.Module:
    if manifest.library != "transformers":
        raise ArtifactError(
            f"{folder} holds a {manifest.model_class}, which is not of the transformers library: "
            "pass an instance of it, load(folder, model=...), for its architecture."
        )
    model: nn.Module = meta_model(folder, manifest.model_class)
    for name, config in configs_of(model):
        for key, recorded in ((ATTENTION_KEY, manifest.attention), (EXPERTS_KEY, manifest.experts)):
            if name in recorded:
                vars(config)[key] = recorded[name]
    return model


def _rebuild(bones: nn.Module, manifest: Manifest, registry: OptimizationRegistry, device: torch.device) -> None:
    """Play the structural and storage steps on the skeleton, with the recorded sites and decisions."""
    journal = Journal(bones, Vault("device"))
    for saved in manifest.steps:
        if saved.stage in REBUILT:
            sites = tuple(Site(path) for path in saved.sites)
            optimization = _created(registry, saved, device)
            try:
                act(optimization, Step(journal, sites, saved.decision, forecast=True), bones)
            except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
                raise ArtifactError(f"{saved.name} cannot be rebuilt from its recorded decision: {error}.") from error


def _created(registry: OptimizationRegistry, saved: SavedStep, device: torch.device) -> OptimizationInterface:
    try:
        return registry.create(saved.name, saved.parameters, device)
    except InvalidSetting as error:
        raise ArtifactError(
            f"{saved.name} was saved with settings that this version refuses: {error} Save the model again."
        ) from error


def _fill(bones: nn.Module, tensors: dict[str, torch.Tensor], manifest: Manifest) -> None:
    slots = {name: (owner, table, key) for name, owner, table, key in _slots(bones)}
    names = set(tensors) | set(manifest.ties)
    if names != set(slots):
        wrong = sorted(names ^ set(slots))
        raise ArtifactError(
            f"the saved tensors are not those of this model: {', '.join(wrong[:5])} do not match. "
            "If another version saved them, save the model again."
        )
    if astray := sorted(set(manifest.ties.values()) - set(tensors)):
        raise ArtifactError(f"the manifest ties tensors to {astray[0]}, which is not saved: save the model again.")
    trainable = set(manifest.trainable)
    filled: dict[str, torch.Tensor] = {}
    for name, (owner, table, key) in slots.items():
        first = manifest.ties.get(name, name)
        if first not in filled:
            old, new = owner.__dict__[table][key], tensors[first]
            if old.shape != new.shape and not is_sized_by_data(owner, key):
                raise ArtifactError(f"{name} is saved as {tuple(new.shape)}, but this model has {tuple(old.shape)}.")
            is_parameter = isinstance(old, nn.Parameter)
            filled[first] = nn.Parameter(new, requires_grad=first in trainable) if is_parameter else new
        owner.__dict__[table][key] = filled[first]
    _check_nothing_is_left(bones)


def _slots(model: nn.Module) -> list[tuple[str, nn.Module, str, str]]:
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        for table in ("_parameters", "_buffers"):
            for key, tensor in module.__dict__[table].items():
                if tensor is not None:
                    found.append((".".join(filter(None, (path, key))), module, table, key))
    return found


def _check_nothing_is_left(bones: nn.Module) -> None:
    for path, module in bones.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise ArtifactError(f"{path}.{key} is a tensor outside the state_dict, and it was not saved.")


def _reload(
    folder: Path, manifest: Manifest, checkpoint: Path, tensors: dict[str, torch.Tensor], device: torch.device,
    manager: ModularOptimizationManager,
) -> nn.Module:  # fmt: skip
    """Open the original and optimize it again; the result must be what was saved, bit for bit."""
    dtypes = {tensor.dtype for name, tensor in tensors.items() if name in manifest.trainable}
    dtype: torch.dtype | Literal["auto"] = dtypes.pop() if len(dtypes) == 1 else "auto"
    model: nn.Module = open_model(checkpoint, dtype=dtype, progress=False).model.to(device)
    model = _apply(model, manifest, manager, [step.name for step in manifest.steps])
    with true_values(model):
        slots = _slots(model)
        now = {name: portable_tensor(owner, key, owner.__dict__[table][key]) for name, owner, table, key in slots}
        differing = [
            name for name, tensor in tensors.items() if name not in now or not torch.equal(now[name].cpu(), tensor)
        ]
    if differing:
        raise ArtifactError(
            f"{checkpoint} is not the model that {folder} was made from: {', '.join(differing[:3])} differ."
        )
    return model


def _apply_the_rest(model: nn.Module, manifest: Manifest, manager: ModularOptimizationManager) -> nn.Module:
    """Steps that depend on the machine, not on the weights, are decided anew here."""
    return _apply(model, manifest, manager, [step.name for step in manifest.steps if step.stage not in REBUILT])


def _apply(model: nn.Module, manifest: Manifest, manager: ModularOptimizationManager, names: list[str]) -> nn.Module:
    parameters: dict[str, Any] = {step.name: step.parameters for step in manifest.steps if step.name in names}
    if not names:
        return model
    try:
        return manager.apply_optimizations(model, names, parameters=parameters)
    except InferencePioError as error:
        raise ArtifactError(f"the saved model cannot be set up on this machine: {error}") from error
