"""Which steps move a model's answers too far: each is taken away in its turn, and those that cost most go."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from inference_pio.configuration.quality_bounds import Quantity
from inference_pio.contract.verdict import StepCost
from inference_pio.errors import NothingApplied, PlanError, QualityBroken
from inference_pio.manager import get_optimization_manager
from inference_pio.manager.session import session_of
from inference_pio.plan.target import TargetSet, Wanted

logger = logging.getLogger("inference_pio")
LEAST_SHARE = 0.02
"""A step pays if its removal takes this share of what is too much away: of eleven the worst has more, unless it hides
behind another that spoils the same."""
WORDS = {"kl": "the KL is {:.2g} nats/token", "perplexity_ratio": "the perplexity ratio is {:.2g}"}


class Found(NamedTuple):
    """How far the answers of a model are from the unmodified one's."""

    kl: float
    perplexity_ratio: float

    def less(self, other: Found) -> Found:
        """What the other one is better by; nothing where neither can be told."""
        if math.isinf(self.kl) and math.isinf(other.kl):
            return Found(0.0, 0.0)
        return Found(self.kl - other.kl, self.perplexity_ratio - other.perplexity_ratio)


NOTHING = Found(0.0, 1.0)
BEYOND = Found(math.inf, math.inf)
"""Answers that are no numbers, or none that can be compared: too far for every bound."""
Judge = Callable[[], Found]
Broken = Callable[[Found], str | None]


class Attribution:
    """Applies a target set to a model that has nothing, and takes wishes back until no bound is broken.

    `judge` measures the model as it stands, `broken` says in words what is too much, and `by` which of the two
    quantities it is.
    """

    def __init__(
        self, model: nn.Module, target: Sequence[Wanted], profile: str | None, judge: Judge, broken: Broken,
        by: Callable[[Found], Quantity] = lambda found: "kl",
    ) -> None:  # fmt: skip
        self._model, self._profile, self._judge, self._broken, self._by = model, profile, judge, broken, by
        self._target: TargetSet = {member.name: member for member in target}
        self.costs: tuple[StepCost, ...] = ()
        self.taken_back: dict[str, str] = {}
        self._held: set[str] = set()
        """Wishes without which an order does not apply: they cannot go."""

    def settle(self) -> tuple[Found, Found]:
        """How far the model was with all steps, and how far it is now. Raises QualityBroken; the caller restores."""
        self._stand()
        session = session_of(self._model)
        self._target = dict(session.target) if session else self._target  # with what members depend on
        before = found = self._judge()
        while (reason := self._broken(found)) is not None:
            without = self._without_each()
            bought = {name: found.less(other) for name, other in without.items()}
            by = self._by(found)
            if not self.costs:
                self.costs = self._priced(bought)
                self._hold_orders(by)
            wishes = {name: one for name, one in bought.items() if not self._is_order(name)}
            if not wishes:
                raise QualityBroken(
                    f"{reason}, and no step can be taken back: what is asked for by name does not apply without "
                    f"{', '.join(sorted(self._held))}. Leave it out, ask less of it, or raise the bound. The model is "
                    "as before the call.",
                    self._applied,
                )
            name, why = self._guilty(found, wishes, by)
            for one in sorted(self._with(name)):
                if self._target[one].off is None and one not in self.taken_back:
                    told = f": {reason}; {why}" if one == name else f" with {name}, which it needs"
                    self.taken_back[one] = f"taken back by the quality guard{told}"
            self._stand()
            found = without[name]
        return before, found

    # ------------------------------------------------------------------ what stands

    def _stand(self, away: Collection[str] = ()) -> None:
        """Bring the model to the target set less what was taken back, and less what is away for a trial."""
        left = [
            replace(member, off=self.taken_back.get(name, member.off))
            for name, member in self._target.items()
            if name not in away
        ]
        manager = get_optimization_manager()
        try:
            manager.set_target(self._model, left, profile=None if away else self._profile)
        except NothingApplied:
            if not away:
                raise
            manager.remove_optimizations(self._model)  # a trial may leave nothing, a profile may not

    @property
    def _applied(self) -> list[str]:
        return get_optimization_manager().get_model_optimizations(self._model)

    def _with(self, name: str) -> set[str]:
        """A step and those that need it."""
        gone = {name}
        while more := {one for one, member in self._target.items() if set(member.dependencies) & gone} - gone:
            gone |= more
        return gone

    def _needs(self, name: str) -> set[str]:
        """A step and those that it needs."""
        found, pending = {name}, [name]
        while pending:
            more = set(self._target[pending.pop()].dependencies) - found
            found |= more
            pending += more
        return found

    def _is_order(self, name: str) -> bool:
        """Whether it, or what needs it, is one."""
        return any(self._target[one].order for one in self._with(name))

    # ------------------------------------------------------------------ who costs what

    def _without_each(self) -> dict[str, Found]:
        """For each step what is found where it alone, and what needs it, is away."""
        without = {}
        for name in self._applied:
            if name not in self._held and (found := self._tried(self._with(name))) is not None:
                without[name] = found
            else:
                self._held.add(name)
        self._stand()
        return without

    def _tried(self, away: Collection[str]) -> Found | None:
        """What is found where these are away; None where an order that is left does not apply without them."""
        try:
            self._stand(away)
        except PlanError as error:
            logger.info("without %s another step cannot stand: %s", ", ".join(sorted(away)), error)
            return None
        return self._judge()

    def _priced(self, bought: Mapping[str, Found]) -> tuple[StepCost, ...]:
        receipts = {receipt.name: receipt for receipt in get_optimization_manager().get_receipts(self._model)}
        return tuple(
            StepCost(
                name, self._is_order(name), one.kl, one.perplexity_ratio,
                receipts[name].weight_bytes_before - receipts[name].weight_bytes_after,
            )
            for name, one in bought.items()
        )  # fmt: skip

    def _guilty(self, found: Found, bought: Mapping[str, Found], by: Quantity) -> tuple[str, str]:
        """The wish whose removal buys most of what is too much, with what it costs in words; where none buys anything,
        the one that costs most alone: of two that spoil the same, neither's removal helps.
        """
        best = max(bought, key=lambda name: getattr(bought[name], by))
        pays = getattr(bought[best], by)
        if pays < LEAST_SHARE * getattr(found.less(NOTHING), by) and len(bought) > 1:
            alone = {name: getattr(self._alone(name), by) for name in bought}
            best = max(alone, key=lambda name: alone[name])
            return best, f"no one's removal helps, and with it alone {WORDS[by].format(alone[best])}"
        return best, f"without it {WORDS[by].format(pays)} less"

    def _alone(self, name: str) -> Found:
        """What is found where of all wishes only this one, and what it needs, stands."""
        stay = self._needs(name)
        found = self._tried([one for one in self._target if one not in stay and not self._is_order(one)])
        return Found(-math.inf, -math.inf) if found is None else found

    def _hold_orders(self, by: Quantity) -> None:
        """Raise where orders alone break a bound: no wish that goes could help."""
        orders = [cost for cost in self.costs if cost.order]
        if not orders:
            return
        found = self._tried([name for name in self._target if not self._is_order(name)])
        if found is None:  # one of them applies only beside a wish
            return
        broken = self._broken(found)
        if broken is None and len(orders) < len(self.costs):
            return
        worst = max(orders, key=lambda cost: getattr(cost, f"{by}_bought"))
        raise QualityBroken(
            f"what is asked for by name moves the answers too far for the quality guard ({broken}): {worst}. Leave "
            f"{worst.name} out, ask less of it, or raise the bound. The model is as before the call.",
            [cost.name for cost in orders],
        )
