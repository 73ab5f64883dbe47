"""`model_surgery`: small edits of a model's structure, each as exact as it says; by default those that lose nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.contract.site import Site
from inference_pio.errors import NoEffect, PlanError
from inference_pio.surgery.edit import Edit, Places
from inference_pio.surgery.edits import edits_of, to_be_done
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.text import SurgeryText
from inference_pio.surgery.unused_experts import unserved

SMALL_TEXT = [[1 + (place * place + row) % 96 for place in range(16)] for row in range(2)]
"""Tokens without a meaning that every small model knows."""
BOTH = ", "
"""Between the names of edits that act at one place."""


class ModelSurgery(OptimizationInterface):
    """Each edit says where it applies; what was decided, by data or without, is the decision, edit by edit."""

    name = "model_surgery"
    optimization_type = OptimizationType.MODEL_STRUCTURE
    stage = Stage.STRUCTURE
    summary = "small edits: patches as a product, absorbed latent decode; by name, layers, tokens and towers go"
    exactness = "exact up to rounding, unless approximate edits are asked for"
    Parameters: ClassVar[type[Settings]] = SurgeryParameters
    on_small_models: ClassVar[Mapping[str, Any]] = {
        "edits": ["patch_linear", "latent_decode", "dead_modules", "attention", "blocks"], "text": SMALL_TEXT,
    }  # fmt: skip

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self._edits: list[Edit] = edits_of(self.parameters)
        self.changes_state_dict = any(edit.changes_state_dict for edit in self._edits)

    def sites(self, model: nn.Module) -> Sequence[Site]:
        found: dict[str, Site] = {}
        for edit in self._edits:
            for site in self._but_skipped(edit.sites(model)):
                found[site.path] = _joined(found.get(site.path), replace(site, role=edit.name))
        return list(found.values())

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        foretold: dict[str, Places] = {}
        for edit in reversed(self._edits):  # whole layers first: what goes with them is nobody's to decide on
            foretold[edit.name] = edit.decide(model, _paths(edit, sites), foretold)
        return {"edits": {name: places for name, places in foretold.items() if places}}

    def preflight(self, model: nn.Module, sites: Sequence[Site]) -> None:
        for edit in self._edits:
            edit.preflight(model, _paths(edit, sites))

    @property
    def runs_the_model(self) -> bool:
        return any(edit.learns for edit in self._edits)

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        text = SurgeryText(model, self.parameters)
        learned: dict[str, Places] = {}
        told: dict[str, Any] = {}
        for edit in reversed(self._edits):
            if edit.name in decision["edits"]:
                found = edit.learn(model, decision["edits"][edit.name], text, learned)
                if found is not None:
                    learned[edit.name], told[edit.name] = found
                    self._check(edit, *found)
        if not any((decision["edits"] | learned).values()):
            raise NoEffect(f"model_surgery: data leave nothing to do for {', '.join(learned)}.")
        return {**decision, "learned": learned, "told": told} if learned else decision

    def apply(self, model: nn.Module) -> nn.Module:
        decision = self.step.decision
        places = to_be_done(model, decision["edits"] | decision.get("learned", {}))
        for edit in self._edits:
            if edit.name in places:
                for note in edit.apply(self.journal, model, places[edit.name]):
                    self.say(note=f"{edit.name} ({edit.exactness}): {note}")
        self.say(backend=", ".join(places))
        for name, found in decision.get("told", {}).items():
            nothing = "" if decision["learned"][name] else "nothing goes, "
            self.say(note=f"{name}: {nothing}{_shown(found)}.")
        for edit in self._edits:
            if self.parameters.edits is not None and edit.name not in decision["edits"]:
                self.say(note=f"{edit.name} was asked for, and finds no place of its own in this model.")
        if (self.parameters.text is not None or self.parameters.tokens_are_given) and not self.runs_the_model:
            self.say(note="text and tokens are not read: none of these edits learns from them.")
        if "learned" not in decision and any(edit.learns for edit in self._edits if edit.name in places):
            self.say(note="what goes is decided when it is applied, by the text that it learns from.")
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        found = unserved(model)
        return {"unserved_experts": found} if found else {}

    def _but_skipped(self, sites: Iterable[Site]) -> Iterator[Site]:
        """What `skip` names is left alone by every edit."""
        skipped = Chosen(skip=self.parameters.skip)
        for site in sites:
            yield replace(site, skip=site.skip or skipped.why_not(site.path, site.role))

    def _check(self, edit: Edit, places: Places, told: Mapping[str, Any]) -> None:
        """Refuse an order that the bar leaves nothing of."""
        asked = self.parameters
        if not places and asked.edits is not None and asked.max_kl is not None and "divergences" in told:
            least = min(told["divergences"].values(), default=float("nan"))
            raise PlanError(
                f"model_surgery: the cheapest of what {edit.name!r} could take costs {least:.3g} nats a token on "
                f"held-out text, and max_kl is {asked.max_kl:g}: raise it, or leave {edit.name!r} out of edits. "
                "Nothing was touched."
            )


def _paths(edit: Edit, sites: Sequence[Site]) -> list[str]:
    """Where an edit acts, among all sites that do."""
    return [site.path for site in sites if edit.name in site.role.split(BOTH)]


def _joined(one: Site | None, other: Site) -> Site:
    """Two edits' sites at one path: it acts if one of them does."""
    if one is None:
        return other
    if one.acts and other.acts:
        return replace(
            one,
            role=f"{one.role}{BOTH}{other.role}",
            claims=one.claims | other.claims,
            nbytes=max(one.nbytes, other.nbytes),
        )
    return one if one.acts or not other.acts else other


def _shown(told: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in told.items() if isinstance(value, int | float | str) and key != "sha256"}
    if costs := told.get("divergences"):
        plain["the cheapest alone"] = min(costs.values())
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in plain.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())
