"""What the shell offers while a command is typed; no torch is loaded for it, so that it answers at once."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import inference_pio

ENTRY_POINTS = "inference_pio.optimizations"


def profiles(incomplete: str) -> list[str]:
    """The profiles that begin so."""
    from inference_pio.configuration import get_config_manager

    return _beginning(get_config_manager().list_profiles(), incomplete)


def profile_lists(incomplete: str) -> list[str]:
    """The same behind the last comma; a profile that stands before it is not offered again.

    >>> profile_lists("balanced,loss")
    ['balanced,lossless']
    """
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",") if before else []
    return [f"{before}{comma}{name}" for name in profiles(last) if name not in given]


def hardware_classes(incomplete: str) -> list[str]:
    """The classes of hardware that begin so.

    >>> hardware_classes("h")
    ['hopper']
    """
    from inference_pio.configuration.hardware import HARDWARE_CLASSES

    return _beginning(list(HARDWARE_CLASSES), incomplete)


def optimizations(incomplete: str) -> list[str]:
    """The optimizations that begin so: one file each, and those of other packages by their entry points.

    >>> optimizations("flash")
    ['flash_attention']
    """
    folder = Path(inference_pio.__file__).parent / "optimizations"
    own = [path.stem for path in folder.glob("*/*.py") if not path.stem.startswith("_")]
    return _beginning([*own, *(entry.name for entry in entry_points(group=ENTRY_POINTS))], incomplete)


def assignments(incomplete: str) -> list[str]:
    """`NAME.`, to go on with a parameter."""
    return [f"{name}." for name in optimizations(incomplete)]


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
