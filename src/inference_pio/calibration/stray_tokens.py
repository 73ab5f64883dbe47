"""Text to learn from in which some tokens are others, chosen by chance: what a text never says is learned from, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inference_pio.anatomy.vocabulary import named_tokens, readable_tokens
from inference_pio.calibration.source import Batch, CalibrationSource

IDS = "input_ids"


def with_stray_tokens(model: nn.Module, source: CalibrationSource, share: float, seed: int = 0) -> CalibrationSource:
    """The same batches, `share` of the tokens in them replaced by any that the model knows, all of them equally likely.

    Tokens that configurations call by a name (ends, padding, pictures) stay and are not chosen, and so do ids that the
    embedding has no row for. Inputs that are no tokens stay as they are.

    >>> source = CalibrationSource("text", ({"input_ids": torch.zeros(1, 8, dtype=torch.int64)},))
    >>> with_stray_tokens(nn.Embedding(4, 2), source, 0.0) is source
    True
    """
    known = readable_tokens(model)
    if not share or known is None:
        return source
    named = torch.tensor(sorted(named_tokens(model)), dtype=torch.int64)
    others, chance = known[~torch.isin(known, named)], torch.Generator().manual_seed(seed)
    batches = (_with_strays(batch, share, others, chance) for batch in source.batches)
    return CalibrationSource(source.name, tuple(batches))


def _with_strays(batch: Batch, share: float, others: Tensor, chance: torch.Generator) -> Batch:
    ids = batch.get(IDS)
    if not isinstance(ids, Tensor) or not len(others):
        return batch
    chosen = others[torch.randint(len(others), ids.shape, generator=chance)].to(ids)
    stray = (torch.rand(ids.shape, generator=chance) < share).to(ids.device) & torch.isin(ids, others.to(ids))
    return {**batch, IDS: torch.where(stray, chosen, ids)}
