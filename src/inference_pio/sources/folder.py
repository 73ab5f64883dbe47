"""Reading a model and its tokenizer from a local folder in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from inference_pio.errors import InferencePioError, SourceError
from inference_pio.sources.layout import check_folder
from inference_pio.sources.quiet import quiet_library

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_READERS = (  # a text model's before a vision-language one's
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
)


@dataclass(frozen=True)
class ReadFolder:
    """What a folder gave; `notes` are sentences for the report."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    notes: tuple[str, ...]


def read_folder(
    folder: Path, *, dtype: torch.dtype | Literal["auto"] = "auto", trust_remote_code: bool = False
) -> ReadFolder:
    """Read model and tokenizer on the CPU, the model in evaluation mode.

    Raises `SourceError` (no model there, a kind that generates no text, weights missing) and `CorruptFile`.
    """
    check_folder(folder)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with quiet_library(), told_as_source_error(f"cannot read the model in {folder}"):
        config = AutoConfig.from_pretrained(str(folder), **options)
        model, report = _reader(config, folder, trust_remote_code).from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            use_safetensors=True,  # never pickle
            output_loading_info=True,
            **options,
        )
    tokenizer, without = read_tokenizer(folder, trust_remote_code=trust_remote_code)
    return ReadFolder(model.eval(), tokenizer, (*_notes_on_weights(report, folder), *without))


def read_tokenizer(
    folder: Path, *, trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase | None, tuple[str, ...]]:
    """A folder's tokenizer, or None and a sentence that says so. Raises SourceError."""
    if not _has_tokenizer(folder):
        return None, ("the source holds no tokenizer: only token numbers go in and out",)
    with quiet_library(), told_as_source_error(f"cannot read the model in {folder}"):
        return (
            AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True),
            (),
        )


@contextmanager
def told_as_source_error(what: str, trusting: str = "trust_remote_code=True") -> Iterator[None]:
    """Whatever the library raises inside becomes one `SourceError` that keeps the library's words; `trusting` is what
    lets a model's own code run.
    """
    try:
        yield
    except (InferencePioError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        remote = "trust_remote_code" in str(error)
        way_out = f" (its own code runs only with {trusting}: read it first)" if remote else ""
        raise SourceError(f"{what}: {error}{way_out}") from error


def _reader(config: PreTrainedConfig, folder: Path, trust_remote_code: bool) -> Any:
    """The library's class that reads this configuration: by its own code, by its architecture, by its type."""
    known = [(reader, _class_names(mapping, config)) for reader, mapping in _READERS]
    asked = set(getattr(config, "architectures", None) or ())
    own_code = getattr(config, "auto_map", None) or {} if trust_remote_code else {}
    fitting = [
        *(reader for reader, _ in known if reader.__name__ in own_code),
        *(reader for reader, names in known if names & asked),
        *(reader for reader, names in known if names),
    ]
    if fitting:
        return fitting[0]
    raise SourceError(
        f"the model in {folder} ({', '.join(sorted(asked)) or config.model_type}) generates no text: "
        "give a causal language model or a vision-language model."
    )


def model_class(config: PreTrainedConfig, folder: Path) -> Any:
    """The library's own class of this configuration; code that comes with a model is not run. Raises SourceError."""
    reader = _reader(config, folder, trust_remote_code=False)
    found = next(mapping for one, mapping in _READERS if one is reader)[type(config)]
    asked = set(getattr(config, "architectures", None) or ())
    kinds = found if isinstance(found, tuple) else (found,)
    return next((kind for kind in kinds if kind.__name__ in asked), kinds[0])


def _class_names(mapping: Any, config: PreTrainedConfig) -> set[str]:
    if type(config) not in mapping:
        return set()
    found = mapping[type(config)]
    return {kind.__name__ for kind in (found if isinstance(found, tuple) else (found,))}


def _notes_on_weights(report: dict[str, Any], folder: Path) -> Iterator[str]:
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        raise SourceError(f"{folder} holds no weights for {some(missing)}: the model would run on random numbers.")
    if unexpected:
        yield f"the source holds weights that the model does not use: {some(unexpected)}"


def some(names: list[str]) -> str:
    """The first of a few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)
