"""`ConfigManager`: profiles and family configs by name and by file, the shipped ones read when first asked for."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import ClassVar

from inference_pio.configuration.families import ModelFamily
from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.legacy_file import Registries, read_family_config
from inference_pio.configuration.profiled_family import with_profile
from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.configuration.reading import DATA, read_settings
from inference_pio.configuration.writing import check_path, document_of, write_document
from inference_pio.errors import InvalidSetting, UnknownName

DEFAULT_PROFILE = "balanced"


class ConfigManager:
    """Knows profiles and family configs: those below `folder` and those registered. Threads may share one.

    >>> ConfigManager().get_profile("balanced").members
    ('flash_attention', 'tensor_compression')
    """

    _registries: ClassVar[tuple[Registries, ...]] = ()

    def __init__(self, folder: Path = DATA) -> None:
        self._folder = folder
        self._active = DEFAULT_PROFILE
        self._lock = threading.RLock()

    @classmethod
    def ask(cls, registries: Registries) -> None:
        """Say where to ask which optimizations there are, when a file in a legacy form is read."""
        cls._registries = (registries,)

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
        _check_is(profile, GlobalOptimizationProfile, "a profile")
        with self._lock:
            if profile.name in self._profiles and not replace:
                raise InvalidSetting(
                    f"there is a profile {profile.name!r} already: choose another name, or replace=True."
                )
            self._profiles[profile.name] = profile.model_copy(deep=True)

    def set_active_profile(self, name: str) -> None:
        """Make a profile the one that the documented functions take when none is given. Raises UnknownName."""
        self._active = self.get_profile(name).name

    def get_active_profile(self) -> GlobalOptimizationProfile:
        """The profile that is taken when none is given: `balanced`, if no other was made the active one."""
        return self.get_profile(self._active)

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
        _check_is(config, ModelOptimizationConfig, "a family config")
        with self._lock:
            if config.family in self._families and not replace:
                raise InvalidSetting(f"the family {str(config.family)!r} has a config already: pass replace=True.")
            self._families[config.family] = config.model_copy(deep=True)

    def apply_profile_to_model_config(
        self, config: ModelOptimizationConfig, profile: GlobalOptimizationProfile | str
    ) -> ModelOptimizationConfig:
        """A new family config that does what the profile (or the one of that name) does for the family's models."""
        _check_is(config, ModelOptimizationConfig, "a family config")
        found = self.get_profile(profile) if isinstance(profile, str) else profile
        _check_is(found, GlobalOptimizationProfile, "a profile")
        return with_profile(config, found)

    # ------------------------------------------------------------------ files

    def save_model_config(self, config: ModelOptimizationConfig, path: str | Path) -> None:
        """Write a family config, as YAML or JSON by the path's ending; whole or not at all.

        Raises InvalidSetting, StorageError.
        """
        _check_is(config, ModelOptimizationConfig, "a family config")
        write_document(check_path(path), document_of(config))

    def load_model_config(self, path: str | Path) -> ModelOptimizationConfig:
        """Read a family config; one in a legacy form is migrated, with one DeprecationWarning that shows the new form.

        It is not registered: see `register_family`. Raises InvalidSetting naming the file and the wrong entry.
        """
        return read_family_config(check_path(path), next(iter(self._registries), None))

    def save_global_profile(self, profile: GlobalOptimizationProfile, path: str | Path) -> None:
        """Write a profile, as YAML or JSON by the path's ending; whole or not at all."""
        _check_is(profile, GlobalOptimizationProfile, "a profile")
        write_document(check_path(path), document_of(profile))

    def load_global_profile(self, path: str | Path) -> GlobalOptimizationProfile:
        """Read a profile. It is not registered: see `register_profile`. Raises InvalidSetting."""
        return read_settings(check_path(path), GlobalOptimizationProfile)

    # ------------------------------------------------------------------ the shipped data

    @property
    def _profiles(self) -> dict[str, GlobalOptimizationProfile]:
        with self._lock:
            return self._read_profiles

    @property
    def _families(self) -> dict[ModelFamily, ModelOptimizationConfig]:
        with self._lock:
            return self._read_families

    @functools.cached_property
    def _read_profiles(self) -> dict[str, GlobalOptimizationProfile]:
        read = [read_settings(path, GlobalOptimizationProfile) for path in _files(self._folder / "profiles")]
        return {profile.name: profile for profile in read}

    @functools.cached_property
    def _read_families(self) -> dict[ModelFamily, ModelOptimizationConfig]:
        read = [read_settings(path, ModelOptimizationConfig) for path in _files(self._folder / "families")]
        return {config.family: config for config in read}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))


def _check_is(given: object, kind: type, what: str) -> None:
    if not isinstance(given, kind):
        raise InvalidSetting(f"{what} must be a {kind.__name__}, not {given!r}.")


_making = threading.Lock()


def get_config_manager() -> ConfigManager:
    """The config manager that the documented functions share."""
    with _making:
        return _shared()


@functools.cache
def _shared() -> ConfigManager:
    return ConfigManager()
