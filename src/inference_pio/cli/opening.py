"""A model opened while the wait for it is shown: a download has bars of its own, reading a folder a clock."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from inference_pio.cli.bars import working
from inference_pio.files import is_folder

if TYPE_CHECKING:
    from inference_pio.integration.asked import Asked
    from inference_pio.plan.plan import Plan
    from inference_pio.sources import OpenedModel


def open_shown(asked: Asked, quiet: bool) -> OpenedModel:
    """The plain model."""
    if not is_folder(os.path.expanduser(asked.spec)):  # noqa: PTH111 - pathlib's own raises where a user has no home
        return asked.open(progress=not quiet)
    with working(f"reading {asked.spec}", quiet):
        return asked.open(progress=False)


def plan_shown(asked: Asked, opened: OpenedModel, quiet: bool) -> Plan:
    """What would be done to it."""
    with working(f"planning {asked.profile}", quiet):
        return asked.plan(opened)


def apply_shown(asked: Asked, opened: OpenedModel, quiet: bool) -> None:
    """Do it."""
    with working(f"applying {asked.profile}", quiet):
        asked.apply(opened)
