"""`unused_experts`: experts that no token of a text was sent to go; routers that would send one there are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.call_guards import put_around
from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.decoder_mlp import Mixture, mlp_parts
from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from inference_pio.calibration.router_counts import collect_router_counts
from inference_pio.contract.site import Site
from inference_pio.surgery.edit import Edit, Places
from inference_pio.surgery.text import SurgeryText
from inference_pio.undo.journal import Journal

PLACES, COUNT, UNSERVED = "expert_places", "num_experts", "_inference_pio_unserved"
GONE = -1


class Unserved:
    """How often a router chose each expert that is gone; counted on the device, read when asked."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None

    def count(self, chosen: Tensor, gone: Tensor, experts: int) -> None:
        if self.counts is None or self.counts.device != chosen.device:
            self.counts = torch.zeros(experts, dtype=torch.int64, device=chosen.device)
        self.counts.scatter_add_(0, chosen.flatten(), gone.flatten().long())

    def told(self) -> dict[str, int]:
        """By the expert's number, where there was any."""
        counts = [] if self.counts is None else self.counts.tolist()
        return {str(expert): count for expert, count in enumerate(counts) if count}


class UnusedExperts(Edit):
    """Routers stay whole, so what is sent to an expert that is there is what was sent before. A choice that is gone
    leaves its share to the others of its token.
    """

    name = "unused_experts"
    exactness = "traffic"
    learns = True

    def sites(self, model: nn.Module) -> Iterable[Site]:
        shared = shared_weights(model)
        chosen = Chosen(self.asked.targets, self.asked.skip)
        for path, mixture in _mixtures(model):
            weights = list(_stacks(mixture.experts).values())
            skip = chosen.why_not(path, "experts") or _why_not(mixture) or why_shared(weights, shared)
            yield Site(path, "experts", skip=skip, nbytes=sum(weight.nbytes for weight in weights))

    def decide(self, model: nn.Module, paths: Iterable[str], others: Mapping[str, Places]) -> Places:
        """Foretold is that all stay: which go is told by data."""
        found = dict(_mixtures(model))
        return {path: {"kept": list(range(_experts_of(found[path])))} for path in paths}

    def learn(
        self, model: nn.Module, places: Places, text: SurgeryText, others: Mapping[str, Places]
    ) -> tuple[Places, dict[str, Any]] | None:
        found = dict(_mixtures(model))
        counts = collect_router_counts(model, text.source)
        gone = [path for taken in others.values() for path in taken]
        learned = {}
        for path in places:
            used = counts[f"{path}.experts"].nonzero().flatten().tolist()
            if used and len(used) < _experts_of(found[path]) and not any(path.startswith(f"{one}.") for one in gone):
                learned[path] = {"kept": used}
        total = {path: _experts_of(found[path]) - len(place["kept"]) for path, place in learned.items()}
        told = {"gone": sum(total.values()), "source": text.source.name, "sha256": text.source.digest}
        return learned, told

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        for path, place in places.items():
            block = model.get_submodule(path)
            mixture = mlp_parts(block)
            assert isinstance(mixture, Mixture)
            _keep(journal, mixture, place["kept"])
        return [f"experts of {len(places)} mixtures are gone; what routers would send them is counted."]


def _keep(journal: Journal, mixture: Mixture, kept: list[int]) -> None:
    count, experts = _experts_of(mixture), mixture.experts
    device = next(experts.parameters()).device
    rows = torch.tensor(kept, device=device)
    places = torch.full((count,), GONE, dtype=torch.int64, device=device)
    places[rows] = torch.arange(len(kept), device=device)
    for name, weight in _stacks(experts).items():
        fewer = weight.detach().index_select(0, rows)
        journal.set(experts, name, nn.Parameter(fewer, requires_grad=weight.requires_grad))
    journal.set(experts, COUNT, len(kept))
    journal.register(mixture.router, mixture.router._buffers, PLACES, places)
    journal.set(mixture.router, UNSERVED, Unserved())
    put_around(journal, mixture.router, to_those_there)


def to_those_there(
    self: nn.Module, inner: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> Any:  # fmt: skip
    """A router's answer, (logits, weights, experts), by the places of experts that are there."""
    logits, weights, chosen = inner(self, *given, **named)
    places = self._buffers[PLACES][chosen]  # type: ignore[index]
    gone = places < 0
    getattr(self, UNSERVED).count(chosen, gone, len(self._buffers[PLACES]))  # type: ignore[arg-type]
    left = weights.masked_fill(gone, 0.0)
    whole, there = weights.sum(-1, keepdim=True), left.sum(-1, keepdim=True)
    share = torch.where(there > 0, whole / there, 1.0)  # exactly one where nothing is gone
    return logits, left * share, places.clamp(min=0)


def unserved(model: nn.Module) -> dict[str, dict[str, int]]:
    """What routers would have sent to experts that are gone, by the path of the router."""
    counts = {path: vars(module)[UNSERVED] for path, module in model.named_modules() if UNSERVED in vars(module)}
    return {path: told for path, found in counts.items() if (told := found.told())}


def _mixtures(model: nn.Module) -> Iterator[tuple[str, Mixture]]:
    for path, module in model.named_modules():
        if isinstance(found := mlp_parts(module), Mixture):
            yield path, found


def _stacks(experts: nn.Module) -> dict[str, nn.Parameter]:
    return dict(experts.named_parameters(recurse=False))


def _experts_of(mixture: Mixture) -> int:
    weight: Tensor = mixture.router.weight  # type: ignore[assignment]
    return weight.shape[0]


def _why_not(mixture: Mixture) -> str | None:
    experts, count = mixture.experts, _experts_of(mixture)
    if any("forward" in vars(one) or hasattr(one, "parametrizations") for one in (experts, mixture.router)):
        return "the forward or a weight of its router or experts is overridden"
    stacks = _stacks(experts)
    if not stacks or any(len(weight) != count for weight in stacks.values()) or experts._buffers:
        return "its experts are stored in fewer bits, or not one behind the other"
    return None if getattr(experts, COUNT, None) == count else "its experts do not tell their number"
