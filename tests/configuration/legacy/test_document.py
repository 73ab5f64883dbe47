from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from inference_pio.configuration import ModelFamily
from inference_pio.configuration.legacy.document import family_of, members_of_document
from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.errors import InvalidSetting, UnknownName


def test_every_key_of_a_legacy_document_is_read() -> None:
    entry = {
        "name": "snn", "enabled": True, "optimization_type": "MODEL_STRUCTURE", "priority": 3,
        "dependencies": ["snn", "flash_attention"], "parameters": {"sparsity_ratio": 0.5},
    }  # fmt: skip
    document = {"model_family": "glm", "default_enabled": False, "optimizations": [entry, {"name": "one"}]}
    (snn, one), changes = members_of_document(document)
    assert (snn.name, snn.enabled, snn.optimization_type, snn.priority) == (
        "snn_conversion",
        True,
        "model_structure",
        3,
    )
    assert snn.dependencies == ("snn_conversion", "flash_attention")
    assert (snn.given[0].place, snn.given[0].value) == ("optimizations.0.parameters.sparsity_ratio", 0.5)
    assert one.enabled is False
    assert [str(change) for change in changes] == ["optimizations.0.name 'snn' -> 'snn_conversion'"]


def test_members_may_be_objects_and_types_may_be_members_of_an_enumeration() -> None:
    given = OptimizationConfig(name="one", optimization_type=OptimizationType.MEMORY, priority=4)
    (one,), _ = members_of_document({"optimizations": [given]})
    assert (one.name, one.enabled, one.priority, one.optimization_type) == ("one", True, 4, "memory")


def test_a_family_is_a_word_or_a_member_of_an_enumeration() -> None:
    old = Enum("old", {"GLM": "glm"})
    assert family_of({"model_family": old.GLM}) is family_of({"model_family": "GLM"}) is ModelFamily.GLM
    assert family_of({}) is ModelFamily.OTHER
    with pytest.raises(UnknownName, match="Did you mean 'qwen'"):
        family_of({"model_family": "qwenn"})


def test_default_enabled_may_name_those_that_are_on() -> None:
    document = {"default_enabled": ["snn"], "optimizations": [{"name": "snn"}, {"name": "one"}]}
    assert [member.enabled for member in members_of_document(document)[0]] == [True, False]


def test_the_order_becomes_priorities() -> None:
    document = {"priority_order": ["two", "one"], "optimizations": [{"name": "one"}, {"name": "two"}]}
    (one, two), (change,) = members_of_document(document)
    assert (two.priority, one.priority) == (10, 20)
    assert str(change) == "priority_order -> priorities two: 10, one: 20"


def test_priorities_that_agree_with_the_order_stay() -> None:
    members = [{"name": "one", "priority": 7}, {"name": "two", "priority": 3}]
    (one, two), (change,) = members_of_document({"priority_order": ["two", "one"], "optimizations": members})
    assert (one.priority, two.priority) == (7, 3)
    assert "the priorities say the same" in str(change)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"optimizations": {"one": {}}}, "optimizations must be a list of mappings"),
        ({"default_enabled": True}, "optimizations must be a list of mappings, not None"),
        ({"optimizations": ["one"]}, r"optimizations\.0 must be a mapping with a name, not 'one'"),
        ({"optimizations": [{"enabled": True}]}, r"optimizations\.0\.name is missing"),
        ({"optimizations": [{"name": 3}]}, r"optimizations\.0\.name must be a word"),
        ({"optimizations": [{"name": "one", "enabled": "true"}]}, r"optimizations\.0\.enabled must be true or false"),
        ({"optimizations": [{"name": "one", "enabled": 1}]}, r"enabled must be true or false, not 1"),
        ({"optimizations": [{"name": "one", "priority": True}]}, r"priority must be a whole number"),
        ({"optimizations": [{"name": "one", "parameters": [1]}]}, r"optimizations\.0\.parameters must be a mapping"),
        ({"optimizations": [{"name": "one", "dependencies": "two"}]}, r"dependencies must be a list of names"),
        ({"optimizations": [{"name": "snn"}, {"name": "snn_conversion"}]}, "snn_conversion is given twice"),
        ({"optimizations": [], "default_enabled": "true"}, "default_enabled must be true, false or a list of names"),
        ({"optimizations": [], "default_enabled": 1}, "default_enabled must be"),
        ({"optimizations": [], "priority_order": "one"}, "priority_order must be a list of names"),
        ({"optimizations": [{"name": "one"}], "priority_order": ["one", "one"]}, "priority_order: one is given twice"),
        (
            {
                "optimizations": [{"name": "a", "priority": 1}, {"name": "b", "priority": 2}],
                "priority_order": ["b", "a"],
            },
            "contradict each other",
        ),
        (
            {"optimizations": [{"name": "a", "enabled": False}], "default_enabled": ["a"]},
            r"optimizations\.0\.enabled and default_enabled contradict",
        ),
    ],
)
def test_wrong_documents_are_told_with_their_place(document: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        members_of_document(document)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"optimizations": [], "priority_ordr": []}, "Did you mean 'priority_order'"),
        ({"optimizations": [{"name": "one", "priorty": 3}]}, r"of optimizations\.0\. Did you mean 'priority'"),
        (
            {"optimizations": [{"name": "one", "optimization_type": "memry"}]},
            r"optimization_type\. Did you mean 'memory'",
        ),
        ({"optimizations": [{"name": "one"}], "priority_order": ["on"]}, r"in priority_order.*Did you mean 'one'"),
        ({"optimizations": [{"name": "one"}], "default_enabled": ["on"]}, r"in default_enabled.*Did you mean 'one'"),
        ({"optimizations": [], "use_quantization": True}, "unknown key 'use_quantization'"),
    ],
)
def test_unknown_words_are_told_with_the_nearest_known_ones(document: dict[str, Any], told: str) -> None:
    with pytest.raises(UnknownName, match=told):
        members_of_document(document)
