"""Layers and attentions that a model does without: how much each turns what flows through, and what its loss costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.calibration.forward import forward
from inference_pio.calibration.source import CalibrationSource
from inference_pio.errors import InvalidModel

INFLUENCE_TOKENS = 4096
JUDGED = 8
"""Candidates of least influence that held-out text judges; each costs a run of it."""


@dataclass
class Removal:
    """What goes, in its order; the divergence of each candidate gone alone, and of all that goes together."""

    taken: list[str] = field(default_factory=list)
    divergences: dict[str, float] = field(default_factory=dict)
    together: float = 0.0


def to_judge(influence: Mapping[str, float], remove: int) -> list[str]:
    """The candidates of least influence, as many as are worth a run of the text.

    >>> to_judge({"a": 0.3, "b": 0.1}, remove=1)
    ['b', 'a']
    """
    return sorted(influence, key=lambda path: influence[path])[: max(JUDGED, remove)]


def cheapest(
    candidates: Iterable[str], divergence: Callable[[Sequence[str]], float], remove: int, max_kl: float | None = None
) -> Removal:
    """At most `remove` of the candidates, one after another that costs least beside those that went, while the
    divergence is no more than `max_kl`.

    >>> cheapest(["a", "b"], lambda gone: 1.0 * len(gone) + ("b" not in gone), remove=1).taken
    ['b']
    """
    found, left = Removal(), list(candidates)
    while left and len(found.taken) < remove:
        costs = {path: divergence([*found.taken, path]) for path in left}
        best = min(costs, key=lambda path: costs[path])
        found.divergences = found.divergences or costs
        if max_kl is not None and not costs[best] <= max_kl:
            break
        found.taken.append(best)
        found.together = costs[best]
        left.remove(best)
    return found


def influences(
    model: nn.Module, source: CalibrationSource, layers: Iterable[str], attentions: Mapping[str, str]
) -> dict[str, float]:
    """How far each layer, and each attention within its layer (`attentions[path of it] = path of the layer`), turns the
    stream: one minus the mean cosine of what comes in and what leaves it (ShortGPT, Men et al. 2024).
    """
    watch = _Watch()
    try:
        for path in layers:
            watch.layer(path, model.get_submodule(path))
        for path, layer in attentions.items():
            watch.attention(path, model.get_submodule(path), model.get_submodule(layer))
        seen = 0
        for batch in source.batches:
            forward(model, batch)
            ids = batch.get("input_ids")
            seen += ids.numel() if isinstance(ids, Tensor) else 0
            if seen >= INFLUENCE_TOKENS:
                break
    finally:
        watch.end()
    return {path: 1 - float(torch.cat(rows).mean()) for path, rows in watch.cosines.items()}


@contextmanager
def passed_over(
    model: nn.Module, layers: Iterable[str], attentions: Mapping[str, nn.Module | None]
) -> Iterator[None]:  # fmt: skip
    """Within this, layers give back what they are given, and attentions add nothing, or what another module makes of
    what they are given; no module is edited.
    """
    hooks = dict.fromkeys(layers, _gives_back) | {path: _adds(other) for path, other in attentions.items()}
    handles = []
    try:
        for path, hook in hooks.items():
            handles.append(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def stream_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer, or an attention, is given of the stream."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _gives_back(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    stream = stream_in(args, kwargs)
    return stream if isinstance(result, Tensor) else (stream, *result[1:])


def _adds(other: nn.Module | None) -> Any:
    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if isinstance(result, Tensor) or len(result) != 2:
            raise InvalidModel(
                f"the attention {type(module).__name__} does not give a pair of its result and weights, so nothing can "
                "stand in its place: leave 'attention' out of edits. Nothing was touched."
            )
        first = first_result(result)
        added = torch.zeros_like(first) if other is None else other(stream_in(args, kwargs))
        return added, result[1]

    return give


class _Watch:
    """Cosines by path, taken while a model computes."""

    def __init__(self) -> None:
        self.cosines: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []
        self._stream: dict[int, Tensor] = {}

    def layer(self, path: str, module: nn.Module) -> None:
        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            self._note(path, stream_in(args, kwargs), first_result(result))

        self._handles.append(module.register_forward_hook(note, with_kwargs=True))

    def attention(self, path: str, module: nn.Module, layer: nn.Module) -> None:
        def enter(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._stream[id(owner)] = stream_in(args, kwargs)

        def note(attention: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            stream = self._stream[id(layer)]
            self._note(path, stream, stream + first_result(result))

        self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(note))

    def _note(self, path: str, before: Tensor, after: Tensor) -> None:
        one, other = (rows.detach().flatten(0, -2).float() for rows in (before, after))
        self.cosines.setdefault(path, []).append(F.cosine_similarity(one, other, dim=-1).cpu())

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()


def first_result(result: Any) -> Tensor:
    """What a layer, or an attention, gives of the stream."""
    found: Tensor = result if isinstance(result, Tensor) else result[0]
    return found
