from __future__ import annotations

from inference_pio.configuration import GlobalOptimizationProfile, ModelOptimizationConfig
from inference_pio.configuration.profiled_family import with_profile


def profile(**settings: dict[str, object]) -> GlobalOptimizationProfile:
    return GlobalOptimizationProfile(name="mine", default_settings=settings)


def family(**more: object) -> ModelOptimizationConfig:
    members = ["one", "two", {"name": "off", "enabled": False}]
    return ModelOptimizationConfig(family="glm", optimizations=members, **more)


def test_exactly_the_profiles_members_are_on() -> None:
    config = with_profile(family(), profile(two={}, new={"size": 1}))
    assert [member.name for member in config.enabled] == ["two", "new"]
    assert [member.name for member in config.members] == ["two", "new", "one", "off"]


def test_what_the_family_switches_off_stays_off() -> None:
    assert not with_profile(family(), profile(off={})).member("off").enabled


def test_the_profiles_parameters_lie_over_those_of_the_family_and_of_its_variants() -> None:
    config = family(
        defaults={"one": {"a": 1, "b": 1}}, priorities={"one": 5},
        variants={"big": {"optimizations": ["two"], "defaults": {"one": {"b": 2, "c": 2}}, "priorities": {"one": 7}}},
    )  # fmt: skip
    merged = with_profile(config, profile(one={"b": 3}))
    assert merged.member("one").parameters == {"a": 1, "b": 3}
    assert merged.member("one").priority == 5
    big = merged.for_model_type("big").member("one")
    assert (big.enabled, big.parameters, big.priority) == (True, {"a": 1, "b": 3, "c": 2}, 7)
