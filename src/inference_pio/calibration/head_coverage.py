"""How much of each head's attention a set of kept blocks holds, at its worst: heads that look far show as such.

Ordinary text may ask for nothing that stands far back. Therefore every window is run a second time with its first half
said twice: what finds earlier passages again then looks half a window back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.calibration.attention_pass import collect_attention_mass
from inference_pio.calibration.forward import Progress
from inference_pio.calibration.source import CalibrationSource

BLOCK = 64
MOST_ROWS = 24
"""Blocks of queries that are measured of one window: all of them would cost several times the forward itself."""
QUANTILE = 0.1
"""A head's coverage is that of its worst tenth of query blocks: a mean would hide the places that look far."""


def said_twice(batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """A batch whose tokens are its first half, and that half again; None where there is more to it than tokens.

    >>> said_twice({"input_ids": torch.tensor([[1, 2, 3, 4]])})["input_ids"].tolist()
    [[1, 2, 1, 2]]
    """
    ids = batch.get("input_ids")
    if set(batch) != {"input_ids"} or not isinstance(ids, Tensor):
        return None
    half = ids[:, : ids.shape[1] // 2]
    return {"input_ids": torch.cat([half, half], 1)}


def coverage_by_head(mass: Tensor, kept: Tensor) -> Tensor:
    """The share of attention on the kept blocks, of the worst tenth of the rows: [heads].

    `mass` [heads, query blocks, key blocks] as `AttentionMass` holds it, `kept` boolean [query blocks, key blocks].

    >>> coverage_by_head(torch.tensor([[[0.25, 0.75]]]), torch.tensor([[True, False]])).tolist()
    [0.25]
    """
    return (mass * kept).sum(-1).quantile(QUANTILE, -1)


def measured_rows(first: int, last: int) -> list[int]:
    """At most `MOST_ROWS` blocks of queries from `first` up to `last`, evenly spread, the last one among them.

    >>> measured_rows(2, 5), measured_rows(0, 100)[-3:]
    ([2, 3, 4], [91, 95, 99])
    """
    count = min(MOST_ROWS, last - first)
    return [last - 1 - (last - first) * place // count for place in range(count)][::-1]


def least_coverage(
    model: nn.Module, source: CalibrationSource, kept: Callable[[int, int], Tensor], first_row: int,
    progress: Progress | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """The lowest coverage of each head of each text layer over every window of token ids, as it is and said twice.

    `kept(query blocks, key blocks)` says which blocks of 64 are kept; query blocks before `first_row` do not count.
    The model is as before.
    """
    least: dict[str, Tensor] = {}
    twice = [said_twice(batch) for batch in source.batches]
    batches = [*source.batches, *(batch for batch in twice if batch is not None)]
    for number, batch in enumerate(batches):
        blocks = -(-batch["input_ids"].shape[1] // BLOCK)
        rows = measured_rows(first_row, blocks)
        for layer in collect_attention_mass(model, CalibrationSource(source.name, (batch,)), block=BLOCK, rows=rows):
            found = coverage_by_head(layer.mass, kept(blocks, blocks)[rows])
            least[layer.path] = torch.minimum(least[layer.path], found) if layer.path in least else found
        if progress:
            progress("calibration", (number + 1) / len(batches))
    return {path: [round(share, 4) for share in found.tolist()] for path, found in least.items()}
