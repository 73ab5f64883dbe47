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
    from inference_pio.configuration.reading import read_document

    configs = get_config_manager()
    if "optimizations" in read_document(Path(given)):
        raise InvalidSetting(
            f"{given} holds the config of a family, not a profile. In Python, "
            f"apply_optimizations_by_config(model, get_config_manager().load_model_config({given!r})) applies it; "
            "a profile has a name and default_settings."
        )
    profile = configs.load_global_profile(given)
    if profile.name in configs.list_profiles() and configs.get_profile(profile.name) != profile:
        raise InvalidSetting(f"{given}: there is another profile {profile.name!r} already: choose another name in it.")
    configs.register_profile(profile, replace=True)
    return profile.name
