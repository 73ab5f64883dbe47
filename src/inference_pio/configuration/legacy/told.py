"""The one warning that a legacy form gives: it shows the new spelling."""

from __future__ import annotations

import warnings

from inference_pio.configuration.legacy.migration import Migration


def warn_of_legacy(what: str, spelling: str, migration: Migration | None = None, stacklevel: int = 2) -> None:
    """Give one DeprecationWarning, which points at `stacklevel` calls above the caller of this function."""
    left = f"\n{migration.not_carried_over}" if migration and migration.unmatched else ""
    warnings.warn(
        f"{what} is a legacy form. Write it so:\n{spelling.rstrip()}{left}", DeprecationWarning, stacklevel + 1
    )
