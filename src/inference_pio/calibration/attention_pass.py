"""Where each head of each layer looks: the share of attention on each block of keys, by block of queries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.walk import attention_modules
from inference_pio.calibration.forward import Progress, forward
from inference_pio.calibration.source import CalibrationSource
from inference_pio.compat import ATTENTION_KEY, add_attention_function, library_attention
from inference_pio.errors import InvalidModel
from inference_pio.kernels.attention_mass import attention_mass
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction
from inference_pio.undo.vault import Vault

RECORDING = "inference_pio_recording"
_RECORDERS: dict[int, Callable[..., None]] = {}


@dataclass(frozen=True)
class AttentionMass:
    """The attention of one layer, averaged over batches: `mass` float32 [heads, query blocks, key blocks].

    Every row of blocks sums to 1, or to 0 where no query saw a key.
    """

    path: str
    block: int
    mass: Tensor

    def blocks_needed(self, coverage: float = 0.95) -> Tensor:
        """The share of the visible blocks, by head [heads], that holds `coverage` of the attention of each row.

        >>> AttentionMass("a", 64, torch.tensor([[[1.0, 0.0], [0.97, 0.03]]])).blocks_needed().tolist()
        [0.6666666865348816]
        """
        ranked = self.mass.sort(-1, descending=True).values.cumsum(-1)
        full = self.mass.sum(-1) > 0
        needed = ((ranked < coverage).sum(-1) + 1) * full
        visible = self.visible_blocks() * full.any(0)
        return needed.sum(-1) / visible.sum().clamp(min=1)

    def visible_blocks(self) -> Tensor:
        """Key blocks at or before each query block, as a causal model sees them: [query blocks]."""
        queries, keys = self.mass.shape[-2:]
        return torch.arange(keys - queries + 1, keys + 1).clamp(min=1)


def collect_attention_mass(
    model: nn.Module, source: CalibrationSource, *, block: int = 64, rows: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[AttentionMass]:  # fmt: skip
    """Run every batch once and record each text layer's attention; the model is as before, to the last attribute.

    Given `rows`, only those blocks of queries, ascending, are measured: `mass` has no others. All batches must be of
    one length. Raises InvalidModel where no attention goes through the library's interface, or
    where lengths differ.
    """
    sums: dict[str, Tensor] = {}
    paths = {id(module): path for path, module, role in attention_modules(model) if role != "vision"}

    def record(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: Any) -> None:
        path = paths[id(module)]
        if rows is not None:
            query, mask, causal = _only(rows, block, query, key, mask, causal)
        measured = attention_mass(query, key, mask, causal=causal, scale=scale, block=block)  # type: ignore[no-untyped-call]
        seen = measured.sum(0).cpu()
        if path in sums and sums[path].shape != seen.shape:
            raise InvalidModel(f"the calibration batches differ in length at {path}: give windows of one length.")
        sums[path] = sums[path] + seen if path in sums else seen

    with _recorded(model, record):
        for number, batch in enumerate(source.batches):
            forward(model, batch, logits_to_keep=1)
            if progress:
                progress("calibration", (number + 1) / len(source.batches))
    if not sums:
        raise InvalidModel(f"no attention of this {type(model).__name__} goes through the library's interface.")
    return [AttentionMass(path, block, mass / _rows(mass)) for path, mass in sums.items()]


def _only(
    rows: Sequence[int], block: int, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor | None, bool]:
    """The queries of some blocks, and a mask that says what they see."""
    queries, keys = query.shape[2], key.shape[2]
    index = torch.cat([torch.arange(row * block, min((row + 1) * block, queries)) for row in rows]).to(query.device)
    if causal:
        seen = torch.arange(keys, device=key.device) <= (keys - queries + index)[:, None]
        mask = seen[None, None]
    elif mask is not None and mask.shape[-2] > 1:
        mask = mask[..., index, :]
    return query[:, :, index], mask, False


def _rows(mass: Tensor) -> Tensor:
    return mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


@contextmanager
def _recorded(model: nn.Module, record: Callable[..., None]) -> Iterator[None]:
    """Let the model's text attention pass by `record`, through a journal of its own that is taken back at the end."""
    add_attention_function(RECORDING, _recording_attention)
    modules = [module for _, module, role in attention_modules(model) if role != "vision"]
    journal = Journal(model, Vault("host"))
    try:
        with journal.step("record attention"):
            for module in modules:
                own = copy.copy(module.config)
                vars(own)[ATTENTION_KEY] = RECORDING
                journal.set(module, "config", own)
                _RECORDERS[id(module)] = record
        yield
    finally:
        for module in modules:
            _RECORDERS.pop(id(module), None)
        transaction = Transaction(journal)
        transaction.undo(list(journal.frames))
        transaction.commit()


def _recording_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    seen = attention_mask
    if seen is not None and seen.dim() == 2:  # the form that flash attention's own mask function gives
        seen = seen[:, None, None, : key.shape[2]].bool().expand(-1, 1, query.shape[2], -1)
        seen = seen.tril(key.shape[2] - query.shape[2]) if causal else seen
        attention_mask = seen
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    _RECORDERS[id(module)](module, query, key, seen, causal, rest.get("scaling"))
    return library_attention()(module, query, key, value, attention_mask, **rest)  # type: ignore[no-any-return]
