"""Adopt a model that comes optimized already (loaded from a file): its earlier steps cannot be taken back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from inference_pio.contract.receipt import Receipt
from inference_pio.manager.guards import install_guards
from inference_pio.manager.session import Session
from inference_pio.undo.configs import own_configs
from inference_pio.undo.places import SESSION


def adopt(model: nn.Module, receipts: Sequence[Receipt], reason: str) -> Session:
    """Hang a session on the model that knows these receipts and why they are not reversible here."""
    session = Session(model)
    session.inherited = tuple(receipts)
    session.irreversible = reason if receipts else None
    if receipts:
        with session.journal.step("(base)", into=session.journal.base):
            session.owned = own_configs(session.journal, model)
            install_guards(session.journal, model)
        model.__dict__[SESSION] = session
    return session
