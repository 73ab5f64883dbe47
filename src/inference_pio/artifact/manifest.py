"""The manifest of a saved model: what was applied, which tensor is which, what the files must be. Plain JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from inference_pio.contract.receipt import Receipt
from inference_pio.contract.settings import Settings
from inference_pio.contract.verdict import Verdict
from inference_pio.errors import ArtifactError, InvalidSetting

FILE = "inference_pio.json"
TENSORS = "model.safetensors"


class SavedStep(Settings):
    """One applied step, with all that its structure is rebuilt from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    stage: str
    parameters: dict[str, Any]
    sites: list[str]
    decision: dict[str, Any]


class Manifest(Settings):
    """What `load` needs beside the tensors; checked before anything is built from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["inference-pio model 1"] = "inference-pio model 1"
    model_class: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    library: Literal["transformers", "own"]
    attention: dict[str, str]
    experts: dict[str, str]
    training: bool
    steps: list[SavedStep]
    receipts: list[dict[str, Any]]
    plan: dict[str, Any]
    ties: dict[str, str]
    trainable: list[str]
    tensors_sha256: str
    weight_bytes: int
    files: list[str] = Field(default_factory=list)

    @property
    def verdict(self) -> Verdict | None:
        """What a quality guard said of it; it stands in the plan, which earlier versions read without it."""
        told = self.plan.get("verdict")
        return None if told is None else Verdict.from_json(told)

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=1).encode()


def folder_named(folder: str | os.PathLike[str]) -> Path:
    """A folder as `Path`. Raises InvalidSetting for what names none."""
    if not isinstance(folder, str | os.PathLike):
        raise InvalidSetting(f"a folder must be a str or a Path, not {folder!r}.")
    return Path(folder)


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a saved model. Raises ArtifactError for what is not one."""
    file = folder / FILE
    try:
        found = Manifest.model_validate(json.loads(file.read_bytes()))
        for entry in found.receipts:
            Receipt.from_json(entry)
        found.verdict  # noqa: B018 - read here, so that a broken one is told as the file's
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} holds no model saved by inference-pio ({FILE} is missing). "
            "Give the folder that save() wrote; an ordinary checkpoint is opened with from_pretrained."
        ) from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{file} cannot be read ({_first_line(error)}): save the model again.") from error
    return found


def _first_line(error: Exception) -> str:
    said = str(error).strip().splitlines()[0]
    return f"{said} is missing" if isinstance(error, KeyError) else said
