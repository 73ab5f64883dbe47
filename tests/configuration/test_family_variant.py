from __future__ import annotations

from typing import Any

import pytest

from inference_pio.configuration import FamilyVariant
from inference_pio.errors import InvalidSetting, UnknownName


def test_lists_as_a_file_gives_them_become_tuples() -> None:
    variant = FamilyVariant(optimizations=["a", "b"], dependencies={"a": ["b"]})
    assert (variant.optimizations, variant.dependencies) == (("a", "b"), {"a": ("b",)})
    assert FamilyVariant().optimizations is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"optimizations": "a"}, "optimizations"),
        ({"optimizations": ["a", "a"]}, "optimizations: a is given twice"),
        ({"optimizations": [1]}, r"optimizations\.0"),
        ({"defaults": {"a": 3}}, r"defaults\.a"),
        ({"priorities": {"a": True}}, r"priorities\.a"),
        ({"priorities": {"a": "1"}}, r"priorities\.a"),
        ({"dependencies": {"a": "b"}}, r"dependencies\.a"),
        ({"dependencies": ["a"]}, "dependencies"),
    ],
)
def test_wrong_shapes_are_told_with_their_place(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        FamilyVariant(**wrong)


def test_an_unknown_key_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'priorities'"):
        FamilyVariant(priority={})
