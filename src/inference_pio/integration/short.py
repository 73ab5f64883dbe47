"""The short face for new code: optimize, optimized, plan, restore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, overload

from torch import nn

from inference_pio.configuration import ModelFamily
from inference_pio.errors import InvalidSetting
from inference_pio.integration.around import measure_around
from inference_pio.integration.pipeline import create_optimization_pipeline
from inference_pio.integration.standing import Standing, back_on_error
from inference_pio.manager import get_optimization_manager
from inference_pio.measure import Report
from inference_pio.plan.plan import Plan
from inference_pio.undo.transaction import OnDrift

M = TypeVar("M", bound=nn.Module)
Family = ModelFamily | str | None


@overload
def optimize(
    model: M, profile: str = ..., measure: Literal[False] = ..., *, family: Family = ..., tokenizer: Any = ...,
    hardware: str | None = ..., max_kl: float | None = ..., max_perplexity_ratio: float | None = ...,
) -> M: ...  # fmt: skip
@overload
def optimize(
    model: M, profile: str = ..., *, measure: Literal[True], family: Family = ..., tokenizer: Any = ...,
    hardware: str | None = ..., max_kl: float | None = ..., max_perplexity_ratio: float | None = ...,
    each_step: bool = ...,
) -> tuple[M, Report]: ...  # fmt: skip
def optimize(
    model: M, profile: str = "balanced", measure: bool = False, *, family: Family = None, tokenizer: Any = None,
    hardware: str | None = None, max_kl: float | None = None, max_perplexity_ratio: float | None = None,
    each_step: bool = False,
) -> M | tuple[M, Report]:  # fmt: skip
    """Give a model exactly a profile's members, in place; family and class of hardware are the model's own, if none is
    given.

    With a bound, here or in the profile, the model is measured beside what it was on held-out text, and the members
    that break it are taken back, those that cost most first; without `tokenizer`, the one that lies where the model
    comes from reads the text. `get_model_optimization_status(model)["quality_guard"]` tells who cost what.

    With `measure=True` the answer is `(model, report)`: speed and memory before and after and, given a `tokenizer`,
    quality; with `each_step=True` after every step, too. That takes minutes. Whatever goes wrong, the model is as
    before the call.
    """
    if each_step and not measure:
        raise InvalidSetting("steps are measured: each_step=True goes with measure=True.")
    pipeline = create_optimization_pipeline(
        family, profile, hardware=hardware, max_kl=max_kl, max_perplexity_ratio=max_perplexity_ratio
    )
    if not measure:
        pipeline(model, tokenizer)
        return model
    with back_on_error(model):
        return model, measure_around(model, pipeline, tokenizer, each_step=each_step)


@contextmanager
def optimized(
    model: M, profile: str = "balanced", *, family: Family = None, tokenizer: Any = None, hardware: str | None = None,
    max_kl: float | None = None, max_perplexity_ratio: float | None = None,
) -> Iterator[M]:  # fmt: skip
    """Optimize a model for the time of a `with` block; at its end the model has again what it had before."""
    pipeline = create_optimization_pipeline(
        family, profile, hardware=hardware, max_kl=max_kl, max_perplexity_ratio=max_perplexity_ratio
    )
    before = Standing.of(model)
    pipeline(model, tokenizer)
    try:
        yield model
    finally:
        before.bring_back(model)


def plan(
    model: nn.Module, profile: str = "balanced", *, names: Sequence[str] | None = None, family: Family = None,
    hardware: str | None = None,
) -> Plan:  # fmt: skip
    """What a profile, or else optimizations by name on top of what stands, would do; nothing is touched."""
    if names is None:
        return create_optimization_pipeline(family, profile, hardware=hardware).plan(model)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidSetting(f"names must be a list of optimization names, not {names!r}.")
    standing = Standing.of(model)
    kept = [member for member in standing.target if member.name not in names]
    return get_optimization_manager().plan(model, [*kept, *names], profile=standing.profile)


def restore(model: M, on_drift: OnDrift = "raise") -> M:
    """Take every optimization back: the model is, bit by bit, what it was."""
    get_optimization_manager().remove_optimizations(model, on_drift=on_drift)
    return model
