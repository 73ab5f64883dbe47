"""A target set under a quality guard: applied, measured beside the unmodified model, guilty steps taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from inference_pio.configuration import QualityBounds
from inference_pio.contract.verdict import Verdict
from inference_pio.errors import MeasureError, PlanError
from inference_pio.integration.attribution import BEYOND, Attribution, Found
from inference_pio.integration.guard_text import GuardText, check_judgeable, guard_text, reading_of
from inference_pio.integration.standing import back_on_error
from inference_pio.manager import get_optimization_manager
from inference_pio.manager.session import session_of
from inference_pio.measure.quality import compare
from inference_pio.measure.reference import Reference
from inference_pio.plan.target import Wanted

logger = logging.getLogger("inference_pio")
TIMEOUT_S = 60.0
"""How long calls in other threads are waited for, as for every edit."""


def set_guarded_target(
    model: nn.Module, target: Sequence[Wanted], profile: str | None, bounds: QualityBounds, tokenizer: Any = None
) -> Verdict | None:
    """Give the model exactly these, less those wishes that break a bound; without bounds nothing is measured.

    What was judged already, of the same target set and bounds and by the same text, is not measured again. Calls in
    other threads wait until the guard is done. Raises QualityBroken where only orders could be taken back, MeasureError
    where nothing can be measured, NothingApplied where every member had to go; then, and after any other error or
    Ctrl-C, the model is as before the call.
    """
    manager = get_optimization_manager()
    if not bounds.any:
        manager.set_target(model, target, profile=profile)
        return None
    asked = f"{profile} {bounds} {reading_of(model, tokenizer)} {sorted(map(repr, target))}"
    check_judgeable(model)  # what is refused is refused before anything is taken off
    manager.plan(model, target, profile=profile)
    with manager.several_edits(model, TIMEOUT_S):
        session = session_of(model)
        if session is not None and session.verdict is not None and session.verdict.asked == asked + _written(model):
            return keep_verdict(model, target, profile, session.verdict)
        with back_on_error(model), _unmodified(model, tokenizer) as (text, judged):
            run = Attribution(
                model, target, profile, judged, lambda found: bounds.broken_by(*found),
                lambda found: bounds.judged_by(found.kl),
            )  # fmt: skip
            before, after = run.settle()
            verdict = _verdict(bounds, text, before, after, run)
        for name, reason in verdict.taken_back.items():
            logger.warning("%s was %s.", name, reason)
        return _noted(model, replace(verdict, asked=asked + _written(model)))


def keep_verdict(model: nn.Module, target: Sequence[Wanted], profile: str | None, verdict: Verdict) -> Verdict:
    """The same where the verdict is known, of this model or of another one of its kind: nothing is measured."""
    gone = verdict.taken_back
    settled = [replace(one, off=gone[one.name]) if one.name in gone else one for one in target]
    get_optimization_manager().set_target(model, settled, profile=profile)
    return _noted(model, verdict)


def _written(model: nn.Module) -> str:
    """What changes where a weight is replaced, or written to by training or by hand: a verdict was of the others."""
    return str(hash(tuple((id(one), 0 if one.is_inference() else one._version) for one in model.parameters())))


@contextmanager
def _unmodified(model: nn.Module, tokenizer: Any) -> Iterator[tuple[GuardText, Callable[[], Found]]]:
    """What the model said before any step, on held-out tokens, to judge it by; whatever stands is taken back."""
    session = session_of(model)
    if session is not None and session.irreversible:
        raise PlanError(
            "a quality guard judges by what the unmodified model says, and this one cannot be had: "
            f"{session.irreversible.removeprefix('no: ')}. Take the model as it was first, or a profile without max_kl "
            "and max_perplexity_ratio. Nothing was touched."
        )
    get_optimization_manager().remove_optimizations(model)
    text = guard_text(model, tokenizer)
    with Reference.record(model, text.tokens) as reference:

        def judged() -> Found:
            try:
                quality = compare(reference, model)
            except MeasureError as error:  # the unmodified model could be judged, so this is what a step did
                logger.warning("what stands counts as too far: %s.", error)
                return BEYOND
            return Found(quality.kl_nats_per_token, quality.perplexity_ratio)

        yield text, judged


def _verdict(bounds: QualityBounds, text: GuardText, before: Found, after: Found, run: Attribution) -> Verdict:
    return Verdict(
        bounds={name: value for name, value in bounds.model_dump().items() if value is not None},
        source=text.source, tokens=text.scored, window=text.tokens.shape[1],
        kl_nats_per_token=after.kl, perplexity_ratio=after.perplexity_ratio,
        kl_before=before.kl, perplexity_ratio_before=before.perplexity_ratio,
        costs=run.costs, taken_back=dict(run.taken_back),
    )  # fmt: skip


def _noted(model: nn.Module, verdict: Verdict) -> Verdict:
    session = session_of(model)
    if session is not None:
        session.verdict = verdict
    return verdict
