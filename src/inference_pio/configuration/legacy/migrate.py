"""`migrate`: from any legacy configuration to today's, without touching anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inference_pio.configuration.families import ModelFamily
from inference_pio.configuration.legacy.document import family_of, members_of_document
from inference_pio.configuration.legacy.flags import flags_on, members_of_flags
from inference_pio.configuration.legacy.migration import Migration
from inference_pio.configuration.legacy.settle import settle
from inference_pio.configuration.legacy.words import FLAGS
from inference_pio.configuration.plain_data import check_plain
from inference_pio.errors import InvalidSetting

if TYPE_CHECKING:
    from inference_pio.contract.registry import OptimizationRegistry

OF_A_DOCUMENT = ("default_enabled", "priority_order", "optimizations")


def is_legacy(given: object) -> bool:
    """Whether this is a mapping in a legacy form, or an object that holds legacy flags; right or wrong inside.

    >>> is_legacy({"use_quantization": True}), is_legacy({"family": "glm", "optimizations": []})
    (True, False)
    """
    if isinstance(given, Mapping):
        return "family" not in given and any(key in given for key in (*FLAGS, *OF_A_DOCUMENT, "model_family"))
    return any(hasattr(type(given), name) or name in getattr(given, "__dict__", {}) for name in FLAGS)


def migrate(legacy: object, registry: OptimizationRegistry, family: ModelFamily | None = None) -> Migration:
    """A legacy document, a mapping of flags, or an object that holds flags, as a family config in today's form.

    What has no counterpart, and what belongs to an optimization that is not registered, is listed in `unmatched`.
    `family` is for flags, which name none (`other`, if it is not given).

    Raises UnknownName for words that were never known, InvalidSetting for wrong or contradicting values.
    """
    if not isinstance(legacy, Mapping):
        return _from_object(legacy, registry, family)
    _check(legacy)
    if "family" in legacy:
        raise InvalidSetting("this configuration names its family by `family`, as today's form does: it is not legacy.")
    if any(key in legacy for key in OF_A_DOCUMENT):
        members, changes = members_of_document(legacy)
        return settle(family_of(legacy), members, registry, changes)
    named = family_of(legacy)
    if family is not None and "model_family" in legacy and named != family:
        raise InvalidSetting(f"model_family is {str(named)!r}, but this call is for {str(family)!r}: give one of them.")
    flags, unmatched = members_of_flags({key: value for key, value in legacy.items() if key != "model_family"})
    return settle(family or named, flags, registry, unmatched=unmatched)


def _from_object(thing: object, registry: OptimizationRegistry, family: ModelFamily | None) -> Migration:
    flags, foreign = flags_on(thing)
    if not flags:
        raise InvalidSetting(f"{thing!r} holds no flag that is known: {', '.join(FLAGS)}.")
    _check(flags)
    members, unmatched = members_of_flags(flags)
    return settle(family or ModelFamily.OTHER, members, registry, unmatched=[*unmatched, *foreign])


def _check(given: Mapping[Any, Any]) -> None:
    try:
        check_plain(given)
    except ValueError as error:
        raise InvalidSetting(f"wrong settings in a legacy configuration: {error}.") from None
