"""`--profile FILE`: a profile of the user's own, made known for this command."""

from __future__ import annotations

from pathlib import Path

from inference_pio.errors import InvalidSetting

ENDINGS = (".yaml", ".yml", ".json")


def profile_named(given: str) -> str:
    """The name of a profile: the word itself, or the name of the one in the file that the word names.

    Raises InvalidSetting naming the file, also where it takes the name of another profile.

    >>> profile_named("balanced")
    'balanced'
    """
    if Path(given).suffix.lower() not in ENDINGS:
        return given

    from inference_pio.configuration import get_config_manager

    configs = get_config_manager()
    profile = configs.load_global_profile(given)
    if profile.name in configs.list_profiles() and configs.get_profile(profile.name) != profile:
        raise InvalidSetting(f"{given}: there is another profile {profile.name!r} already: choose another name in it.")
    configs.register_profile(profile, replace=True)
    return profile.name
