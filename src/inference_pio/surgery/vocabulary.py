"""`vocabulary`: tokens that no text of a kind uses leave the embedding and the head; ids stay what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.vocabulary import Vocabulary, named_tokens, vocabulary_of
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidSetting
from inference_pio.surgery.edit import Edit, Places
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.text import SurgeryText
from inference_pio.surgery.trimmed import TrimmedEmbedding, TrimmedHead
from inference_pio.undo.journal import Journal

Runs = list[list[int]]
"""Ids as pairs of a first one and the one behind the last: most are neighbours."""


class TrimmedVocabulary(Edit):
    """Kept are the tokens of `keep_ids` or of the text, and all that the model calls by a name. Logits of kept tokens
    are the same bits; the others are minus infinity, so nothing generates them, and a text that holds one is refused.
    """

    name = "vocabulary"
    exactness = "traffic"

    def __init__(self, asked: SurgeryParameters) -> None:
        super().__init__(asked)
        self.learns = asked.keep_ids is None

    def sites(self, model: nn.Module) -> Iterable[Site]:
        found = vocabulary_of(model)
        if isinstance(found, tuple):
            yield Site(found[0], skip=found[1])
        elif found is not None:
            weights = [model.get_submodule(path).get_parameter("weight") for path in (found.embedding, found.head)]
            nbytes = sum(weight.nbytes for weight in weights) // (1 + found.tied)
            all_stay = (
                self.asked.keep_ids is not None and len(self._kept(model, found, self.asked.keep_ids)) == found.size
            )
            skip = f"all of its {found.size} tokens are kept" if all_stay else None
            yield Site(found.embedding, "embedding", skip=skip, nbytes=nbytes)

    def decide(self, model: nn.Module, paths: Iterable[str], others: Mapping[str, Places]) -> Places:
        """Foretold are the ids that are given; those of a text are known once it is read."""
        found, given = vocabulary_of(model), self.asked.keep_ids
        if not isinstance(found, Vocabulary):
            return {}
        kept = range(found.size) if given is None else self._kept(model, found, given)
        return {path: {"head": found.head, "size": found.size, "kept": runs_of(kept)} for path in paths}

    def learn(
        self, model: nn.Module, places: Places, text: SurgeryText, others: Mapping[str, Places]
    ) -> tuple[Places, dict[str, Any]] | None:
        found = vocabulary_of(model)
        if self.asked.keep_ids is not None or not isinstance(found, Vocabulary):
            return None
        seen: set[int] = set()
        for batch in text.source.batches:
            seen.update(batch["input_ids"].unique().tolist())
        kept = self._kept(model, found, seen)
        learned = {path: {**place, "kept": runs_of(kept)} for path, place in places.items() if len(kept) < found.size}
        return learned, {"source": text.source.name, "tokens": text.source.tokens, "sha256": text.source.digest}

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        told = []
        for path, place in places.items():
            kept = ids_of(place["kept"])
            _trim(journal, model, path, place["head"], kept)
            told.append(f"{len(kept)} of {place['size']} tokens stay: others are refused, and never generated.")
        return told

    def _kept(self, model: nn.Module, found: Vocabulary, ids: Iterable[int]) -> list[int]:
        """Those ids and all that the model has a name for. Raises InvalidSetting for one that it does not know."""
        asked = set(ids)
        if max(asked) >= found.size:
            raise InvalidSetting(f"keep_ids holds {max(asked)}, and this model knows {found.size} tokens.")
        return sorted(asked | {one for one in named_tokens(model) if one < found.size})


def _trim(journal: Journal, model: nn.Module, path: str, head_path: str, kept: Tensor) -> None:
    embedding: Any = model.get_submodule(path)
    head: Any = model.get_submodule(head_path)
    weight = _rows(embedding.weight, kept)
    tied = embedding.weight is head.weight
    bias = None if head.bias is None else _rows(head.bias, kept)
    other = TrimmedHead(head, weight if tied else _rows(head.weight, kept), bias, kept)
    journal.replace(embedding, TrimmedEmbedding(embedding, weight, kept))
    journal.replace(head, other)


def _rows(weight: nn.Parameter, kept: Tensor) -> nn.Parameter:
    rows = weight.detach().index_select(0, kept.to(weight.device))
    return nn.Parameter(rows, requires_grad=weight.requires_grad)


def runs_of(ids: Iterable[int]) -> Runs:
    """Sorted ids as runs.

    >>> runs_of([1, 2, 3, 7])
    [[1, 4], [7, 8]]
    """
    found = list(ids)
    starts = [0, *(place for place, (one, other) in enumerate(pairwise(found), 1) if other != one + 1), len(found)]
    return [[found[start], found[end - 1] + 1] for start, end in pairwise(starts)]


def ids_of(runs: Runs) -> Tensor:
    """The ids of runs, int64, on the CPU.

    >>> ids_of([[1, 4], [7, 8]]).tolist()
    [1, 2, 3, 7]
    """
    return torch.cat([torch.arange(start, end, device="cpu") for start, end in runs])
