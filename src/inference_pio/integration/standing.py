"""What a model has at one moment, so that a later call can bring it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from inference_pio.contract.verdict import Verdict
from inference_pio.manager import get_optimization_manager
from inference_pio.manager.session import session_of
from inference_pio.plan.make import check_model
from inference_pio.plan.target import Wanted


@dataclass(frozen=True)
class Standing:
    """A model's target set, the profile that it came from, and what a quality guard said of it."""

    target: tuple[Wanted, ...]
    profile: str | None
    verdict: Verdict | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Standing:
        check_model(model)
        session = session_of(model)
        return cls(tuple(session.target.values()), session.profile, session.verdict) if session else cls((), None)

    def bring_back(self, model: nn.Module) -> None:
        """Give the model this target set again; what is the same is not touched."""
        get_optimization_manager().set_target(model, self.target, profile=self.profile)
        session = session_of(model)
        if session is not None:
            session.verdict = self.verdict


@contextmanager
def back_on_error(model: nn.Module) -> Iterator[None]:
    """Whatever is raised inside, Ctrl-C too, the model has again what it had before."""
    before = Standing.of(model)
    try:
        yield
    except BaseException:
        before.bring_back(model)
        raise
