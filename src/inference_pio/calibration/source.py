"""What a model is calibrated on: what the user gives, else the default text, else what the model itself says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.calibration.left_as_found import left_as_found
from inference_pio.errors import InvalidSetting
from inference_pio.measure.target import input_device, vocab_size
from inference_pio.measure.text import calibration_text
from inference_pio.sources.quiet import quiet_library

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class CalibrationSource:
    """Keyword arguments of as many forwards, and where they come from: the receipt says it."""

    name: str
    batches: tuple[Batch, ...]

    @property
    def tokens(self) -> int:
        """Tokens in all, padding left out; 0 where the inputs are no tokens."""
        return sum(_count(batch) for batch in self.batches)

    @property
    def digest(self) -> str:
        """SHA-256 of every tensor: two sources of one digest give the same statistics."""
        total = hashlib.sha256()
        for batch in self.batches:
            for key in sorted(batch):
                total.update(f"{key} {getattr(batch[key], 'dtype', '')} {getattr(batch[key], 'shape', '')} ".encode())
                total.update(_bytes_of(batch[key]))
        return total.hexdigest()


def calibration_source(
    model: nn.Module, calibration: Any = None, tokenizer: Any = None, *, tokens: int = 32768, window: int = 1024,
    seed: int = 0,
) -> CalibrationSource:  # fmt: skip
    """What to calibrate `model` on: of texts at most `tokens` tokens in windows of `window`, else all that is given.

    `calibration` may be texts (a tokenizer is needed), token ids [windows, length], or example inputs: mappings of
    keyword arguments. Without it: the default text with `tokenizer`, or with the one that lies where the model was
    loaded from; else tokens sampled from the model itself, seeded. Raises InvalidSetting, with the way out, where none
    of these can be had.
    """
    if tokens < 1 or window < 2:
        raise InvalidSetting(f"calibration takes 1 token or more in windows of 2 or more, not {tokens} in {window}.")
    if calibration is not None:
        return _given(model, calibration, tokenizer, tokens, window)
    found = tokenizer if tokenizer is not None else tokenizer_beside(model)
    if found is not None:
        rows = _windows(_encode(found, [calibration_text()]), tokens, window, "the default text")
        return CalibrationSource("pydoc_data.topics, calibration part", _batches(_known(model, rows)))
    if callable(getattr(model, "generate", None)) and vocab_size(model):
        return CalibrationSource(f"sampled from the model itself, seed {seed}", _sampled(model, tokens, window, seed))
    raise InvalidSetting(
        f"there is nothing to calibrate this {type(model).__name__} on: no tokenizer lies where it was loaded from, "
        "and it generates no tokens. Give calibration=[{'input name': tensor, ...}, ...], token ids, or a tokenizer."
    )


def token_windows(given: Any) -> Any:
    """Token ids as a file of settings holds them, as a tensor; anything else as it is."""
    if not given or isinstance(given[0], str):
        return given
    if len({len(row) for row in given}) > 1:
        raise InvalidSetting("calibration token ids must be rows of one length.")
    return torch.tensor(given)


def _given(model: nn.Module, given: Any, tokenizer: Any, tokens: int, window: int) -> CalibrationSource:
    if isinstance(given, CalibrationSource):
        return given
    if isinstance(given, Tensor):
        if given.dim() != 2 or given.is_floating_point() or not given.numel():
            raise InvalidSetting(f"calibration tokens must be ids [windows, length], not {_shown(given)}.")
        return CalibrationSource("token ids of the user", _batches(_known(model, given)))
    if isinstance(given, str):
        given = [given]
    rows = list(given) if isinstance(given, Sequence) else []
    if rows and all(isinstance(row, str) for row in rows):
        found = tokenizer if tokenizer is not None else tokenizer_beside(model)
        if found is None:
            raise InvalidSetting("calibration texts need a tokenizer: give tokenizer=..., or token ids instead.")
        ids = _windows(_encode(found, rows), tokens, window, "the calibration texts")
        return CalibrationSource(f"{len(rows)} texts of the user", _batches(_known(model, ids)))
    if rows and all(isinstance(row, Mapping) and row for row in rows):
        return CalibrationSource(f"{len(rows)} example inputs of the user", tuple(dict(row) for row in rows))
    raise InvalidSetting(
        "calibration must be a list of texts, token ids [windows, length], or a list of example inputs (mappings of "
        f"keyword arguments), not {_shown(given)}."
    )


def tokenizer_beside(model: nn.Module) -> Any:
    """The tokenizer in the local folder that a model was loaded from; None where there is none."""
    place = getattr(getattr(model, "config", None), "name_or_path", "")
    if not place:
        return None
    from transformers import AutoTokenizer

    try:
        with quiet_library():
            return AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # its many ways of saying that there is none
        return None


def _encode(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    return torch.tensor([token for row in ids for token in row], dtype=torch.int64)


def _windows(ids: Tensor, tokens: int, window: int, what: str) -> Tensor:
    """Whole windows spread evenly over the text; one shorter window where the text is no longer."""
    if ids.numel() < 2:
        raise InvalidSetting(f"{what} is {ids.numel()} tokens long, too short to calibrate on: give more text.")
    if ids.numel() <= window:
        return ids[None]
    there = ids.numel() // window
    wanted = min(there, max(1, tokens // window))
    return ids[: there * window].view(there, window)[[index * there // wanted for index in range(wanted)]]


def _known(model: nn.Module, rows: Tensor) -> Tensor:
    known = vocab_size(model)
    if known is not None and (int(rows.max()) >= known or int(rows.min()) < 0):
        raise InvalidSetting(
            f"calibration tokens go from {int(rows.min())} to {int(rows.max())} and this model knows {known}: "
            "they come from another model's tokenizer."
        )
    return rows


def _batches(rows: Tensor) -> tuple[Batch, ...]:
    return tuple({"input_ids": row[None]} for row in rows)


def _sampled(model: nn.Module, tokens: int, window: int, seed: int) -> tuple[Batch, ...]:
    """Windows that the model writes itself from one random token each; the caller's random state stays as it is."""
    device, count = input_device(model), max(1, tokens // window)
    start = torch.randint(vocab_size(model) or 1, (count, 1), generator=torch.Generator().manual_seed(seed))
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with left_as_found(model), forked, torch.no_grad():
        torch.manual_seed(seed)
        rows = model.generate(  # type: ignore[operator]
            input_ids=start.to(device), attention_mask=torch.ones_like(start).to(device), do_sample=True, top_k=0,
            top_p=1.0, temperature=1.0, max_new_tokens=window - 1, min_new_tokens=window - 1, pad_token_id=0,
        )  # fmt: skip
    return _batches(rows.cpu())


def _count(batch: Batch) -> int:
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return int(mask.sum())
    return ids.numel() if isinstance(ids, Tensor) else 0


def _bytes_of(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return repr(value).encode()
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
