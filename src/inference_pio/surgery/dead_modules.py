"""`dead_modules`: a chain of modules steps over those that give back what they are given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from inference_pio.anatomy.call_guards import is_watched, library_forward, put_forward
from inference_pio.anatomy.walk import parent_of
from inference_pio.contract.site import Site
from inference_pio.surgery.edit import Edit, Places
from inference_pio.undo.journal import Journal

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class DeadModules(Edit):
    """They stay in the chain, so that indices, names and training are what they were; only the call is left out."""

    name = "dead_modules"
    exactness = "bit"
    changes_state_dict = False

    def sites(self, model: nn.Module) -> Iterable[Site]:
        for path, module in model.named_modules():
            if path and type(module) in (nn.Identity, *DROPOUTS):
                yield Site(path, skip=_why_not(model, parent_of(model, path)[0]), whole=False)

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        chains = {id(chain): chain for path in places for chain in [parent_of(model, path)[0]]}
        for chain in chains.values():
            put_forward(journal, chain, live_forward)
        return [f"{len(places)} modules that change nothing are stepped over in {len(chains)} chains."]


def live_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The forward of a chain that calls its live modules alone."""
    if named or len(given) != 1:
        return library_forward(self, *given, **named)
    out = given[0]
    for module in self._modules.values():
        if not is_dead(module):
            out = module(out)  # type: ignore[misc]
    return out


def is_dead(module: nn.Module | None) -> bool:
    """Whether a module gives back what it is given, and nobody watches it do so.

    >>> is_dead(nn.Identity()), is_dead(nn.Dropout(0.5)), is_dead(nn.Dropout(0.5).eval())
    (True, False, True)
    """
    kind = type(module)
    if kind is not nn.Identity and not (kind in DROPOUTS and (not module.training or module.p == 0)):  # type: ignore[union-attr]
        return False
    return "forward" not in module.__dict__ and not is_watched(module)  # type: ignore[arg-type]


def _why_not(model: nn.Module, parent: nn.Module) -> str | None:
    if type(parent) is not nn.Sequential:
        return f"{type(parent).__name__} calls it by its name, so there is no call to leave out"
    if parent is model:
        return "its chain is the model itself, whose forward also waits for edits"
    return "the forward of its chain is overridden" if "forward" in parent.__dict__ else None
