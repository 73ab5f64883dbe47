"""Configurations in the forms that came before this package, and what they are in its own words."""

from inference_pio.configuration.legacy.migrate import is_legacy, migrate
from inference_pio.configuration.legacy.migration import Change, Migration, Unmatched

__all__ = ["Change", "Migration", "Unmatched", "is_legacy", "migrate"]
