"""A model id of the Hugging Face hub, as a local folder: fetched when needed, else the copy in the hub's own cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from inference_pio.errors import SourceError
from inference_pio.files import storage_errors
from inference_pio.sources.folder import told_as_source_error
from inference_pio.sources.progress import say
from inference_pio.sources.quiet import hub_bars

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]  # the same weights in other layouts
_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EROFS}
_WAY_OUT = "Give a local folder in the Hugging Face layout, a .gguf file, or 'demo'."


def hub_folder(model_id: str, *, trust_remote_code: bool = False, progress: bool = True) -> Path:
    """The local folder of a hub model; its Python files come along only with `trust_remote_code`.

    Raises `SourceError` (no such model, no access, hub out of reach) and `StorageError`.
    """
    wanted = [*_WANTED, "*.py"] if trust_remote_code else _WANTED
    say(f"Looking for {model_id} on the Hugging Face hub.", progress)
    with hub_bars(progress), told_as_source_error(f"cannot fetch {model_id}"):
        try:
            return Path(snapshot_download(model_id, allow_patterns=wanted, ignore_patterns=_UNWANTED))
        except HFValidationError as error:
            raise SourceError(f"there is no folder {model_id!r}, and a hub id looks otherwise. {_WAY_OUT}") from error
        except GatedRepoError as error:
            told = "ask for access on its page of the hub, then log in with `hf auth login`"
            raise SourceError(f"{model_id} is open only to whom its owner lets in: {told}.") from error
        except RepositoryNotFoundError as error:
            raise SourceError(f"neither a folder nor a hub model {model_id!r} was found. {_WAY_OUT}") from error
        except OSError as error:
            _tell_disk_error(error)
            told = str(error).splitlines()[0].rstrip(".")
            raise SourceError(
                f"there is no folder {model_id!r}, and the hub cannot be reached ({told}). {_WAY_OUT}"
            ) from error


def _tell_disk_error(error: OSError) -> None:
    if error.errno in _DISK_ERRORS:
        with storage_errors(error.filename or os.environ.get("HF_HOME", "the hub's cache folder (HF_HOME)")):
            raise error
