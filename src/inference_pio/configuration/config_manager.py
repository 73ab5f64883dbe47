"""`ConfigManager`: profiles and family configs by name, the shipped ones read when first asked for."""

from __future__ import annotations

import functools
from pathlib import Path

from inference_pio.configuration.families import ModelFamily
from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.configuration.reading import DATA, read_settings
from inference_pio.errors import InvalidSetting, UnknownName


class ConfigManager:
    """Knows profiles and family configs: those below `folder` and those registered.

    >>> ConfigManager().get_profile("balanced").members
    ('flash_attention', 'tensor_compression')
    """

    def __init__(self, folder: Path = DATA) -> None:
        self._folder = folder

    # ------------------------------------------------------------------ profiles

    def get_profile(self, name: str) -> GlobalOptimizationProfile:
        """A copy of a profile. Raises UnknownName with the nearest known names."""
        found = self._profiles.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownName("profile", name, self._profiles)
        return found.model_copy(deep=True)

    def list_profiles(self) -> list[str]:
        """The names of all profiles."""
        return sorted(self._profiles)

    def register_profile(self, profile: GlobalOptimizationProfile, *, replace: bool = False) -> None:
        """Make a profile of your own known by its name; taking a known name needs `replace`."""
        if not isinstance(profile, GlobalOptimizationProfile):
            raise InvalidSetting(f"a profile must be a GlobalOptimizationProfile, not {profile!r}.")
        if profile.name in self._profiles and not replace:
            raise InvalidSetting(f"there is a profile {profile.name!r} already: choose another name, or replace=True.")
        self._profiles[profile.name] = profile.model_copy(deep=True)

    # ------------------------------------------------------------------ families

    def get_family_config(self, family: ModelFamily | str) -> ModelOptimizationConfig:
        """A copy of a family's config; an empty one for a family without defaults of its own.

        Raises UnknownName for a name that is no family.
        """
        known = ModelFamily.of(family)
        found = self._families.get(known) or ModelOptimizationConfig(family=known)
        return found.model_copy(deep=True)

    def list_families(self) -> list[str]:
        """The names of all families, those without a config of their own too."""
        return sorted(str(family) for family in ModelFamily.known())

    def register_family(self, config: ModelOptimizationConfig, *, replace: bool = False) -> None:
        """Give a family (see `ModelFamily.register`) its config; taking a shipped one's place needs `replace`."""
        if not isinstance(config, ModelOptimizationConfig):
            raise InvalidSetting(f"a family config must be a ModelOptimizationConfig, not {config!r}.")
        if config.family in self._families and not replace:
            raise InvalidSetting(f"the family {str(config.family)!r} has a config already: pass replace=True.")
        self._families[config.family] = config.model_copy(deep=True)

    # ------------------------------------------------------------------ the shipped data

    @functools.cached_property
    def _profiles(self) -> dict[str, GlobalOptimizationProfile]:
        read = [read_settings(path, GlobalOptimizationProfile) for path in _files(self._folder / "profiles")]
        return {profile.name: profile for profile in read}

    @functools.cached_property
    def _families(self) -> dict[ModelFamily, ModelOptimizationConfig]:
        read = [read_settings(path, ModelOptimizationConfig) for path in _files(self._folder / "families")]
        return {config.family: config for config in read}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))


@functools.cache
def get_config_manager() -> ConfigManager:
    """The config manager that the documented functions share."""
    return ConfigManager()
