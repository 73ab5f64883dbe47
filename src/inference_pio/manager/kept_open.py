"""Calls of a model that wait for edits from the first of several to the last, whatever stands on it in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from inference_pio.manager.guards import install_guards
from inference_pio.manager.running import wait_until_idle
from inference_pio.manager.session import Session, gate_of, session_of
from inference_pio.undo.configs import own_configs
from inference_pio.undo.places import SESSION


def open_base(model: nn.Module, session: Session) -> None:
    """Guard the model's calls, and give it configurations of its own, unless that was done."""
    if not session.journal.base.entries:
        with session.journal.step("(base)", into=session.journal.base):
            session.owned = own_configs(session.journal, model)
            install_guards(session.journal, model)


@contextmanager
def kept_open(model: nn.Module, timeout_s: float) -> Iterator[None]:
    """Edit alone, and keep the guards when no step stands: a model without them is edited only while nobody calls it,
    and calls that wait for the end of the edits never end before.

    Who takes this closes it behind: the guards are still there where nothing stands at the end.
    """
    with gate_of(model).writing(timeout_s):
        session = session_of(model)
        if session is None:
            wait_until_idle(model, timeout_s)
            session = _opened(model)
        session.stays = True
        try:
            yield
        finally:
            session.stays = False


def _opened(model: nn.Module) -> Session:
    model.__dict__[SESSION] = session = Session(model)
    try:
        open_base(model, session)
    except BaseException:
        model.__dict__.pop(SESSION, None)
        raise
    return session
