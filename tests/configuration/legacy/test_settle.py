from __future__ import annotations

import pytest

from inference_pio.configuration import ModelFamily
from inference_pio.configuration.legacy.members import Given, Member
from inference_pio.configuration.legacy.settle import settle
from inference_pio.errors import InvalidSetting, UnknownName
from tests.configuration.legacy.later import Offloading, Spiking, one_day, today


def test_what_is_registered_comes_over_whole() -> None:
    compression = Member(
        "tensor_compression", True, {"use_quantization": True}, [Given("quantization_bits", 8, ("format",), "int8")],
        priority=4, dependencies=("flash_attention",),
    )  # fmt: skip
    migration = settle(ModelFamily.GLM, [compression, Member("flash_attention", False)], today())
    assert migration.document == {
        "family": "glm",
        "optimizations": ["tensor_compression", {"name": "flash_attention", "enabled": False}],
        "defaults": {"tensor_compression": {"format": "int8"}},
        "priorities": {"tensor_compression": 4},
        "dependencies": {"tensor_compression": ["flash_attention"]},
    }
    assert migration.unmatched == ()
    assert [str(change) for change in migration.changes] == [
        "use_quantization: true -> tensor_compression on",
        "quantization_bits: 8 -> format of tensor_compression: 'int8'",
    ]


def test_what_is_not_registered_is_reported_until_it_is() -> None:
    spiking = Member("snn_conversion", True, {"use_snn_conversion": True})
    (unmatched,) = settle(ModelFamily.GLM, [spiking], today()).unmatched
    assert str(unmatched) == "use_snn_conversion = True: snn_conversion is not registered here"
    migration = settle(ModelFamily.GLM, [spiking], one_day(Spiking))
    assert migration.document["optimizations"] == ["snn_conversion"]
    assert migration.unmatched == ()


def test_switching_off_what_is_not_there_is_fulfilled_and_told() -> None:
    migration = settle(ModelFamily.GLM, [Member("snn_conversion", False, {"use_snn_conversion": False})], today())
    assert (migration.document["optimizations"], migration.unmatched) == ([], ())
    assert "left out: snn_conversion is not registered here, so it is off" in str(migration)


def test_a_value_that_several_could_take_is_matched_where_one_does() -> None:
    members = [
        Member(name, False, given=[Given("max_memory_ratio", 0.5, ("max_memory_ratio",), 0.5)])
        for name in ("disk_offloading", "activation_offloading")
    ]
    (unmatched,) = settle(ModelFamily.GLM, members, today()).unmatched
    assert unmatched.reason == "disk_offloading is not registered here, activation_offloading is not registered here"
    migration = settle(ModelFamily.GLM, members, one_day(Offloading))
    assert migration.unmatched == ()
    assert migration.document["defaults"] == {"disk_offloading": {"max_memory_ratio": 0.5}}


def test_a_value_that_has_no_counterpart_is_reported_and_a_wrong_one_refused() -> None:
    mapped = Given("quantization_bits", 4, ("format",), "int3")
    (unmatched,) = settle(ModelFamily.GLM, [Member("tensor_compression", True, given=[mapped])], today()).unmatched
    assert "tensor_compression cannot do this here" in unmatched.reason
    wrong = Given("optimizations.0.parameters.format", "int3", ("format",), "int3")
    with pytest.raises(InvalidSetting, match=r"optimizations\.0\.parameters\.format: wrong settings for tensor_comp"):
        settle(ModelFamily.GLM, [Member("tensor_compression", True, given=[wrong])], today())


def test_parameters_that_contradict_one_another_are_refused() -> None:
    given = [
        Given(f"optimizations.0.parameters.{k}", v, (k,), v) for k, v in (("use_triton", True), ("backend", "fused"))
    ]
    with pytest.raises(InvalidSetting, match="contradict each other"):
        settle(ModelFamily.GLM, [Member("flash_attention", True, given=given)], today())


def test_words_that_were_never_known_are_told_with_the_nearest_known_ones() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'snn_conversion'"):
        settle(ModelFamily.GLM, [Member("snn_convertion", True, {"optimizations.0": True})], today())
    given = Given("optimizations.0.parameters.use_trition", True, ("use_trition",), True)
    with pytest.raises(UnknownName, match=r"optimizations\.0\.parameters.*Did you mean 'use_triton'"):
        settle(ModelFamily.GLM, [Member("flash_attention", True, given=[given])], today())


def test_a_type_must_be_the_optimizations_own() -> None:
    member = Member("flash_attention", True, {"optimizations.2": True}, optimization_type="memory")
    with pytest.raises(
        InvalidSetting, match=r"optimizations\.2\.optimization_type: flash_attention is of type attention"
    ):
        settle(ModelFamily.GLM, [member], today())


def test_a_dependency_that_is_not_registered_is_reported() -> None:
    member = Member("flash_attention", True, {"optimizations.0": True}, dependencies=("kernel_fusion",))
    migration = settle(ModelFamily.GLM, [member], today())
    assert "dependencies" not in migration.document
    assert migration.unmatched[0].value == "kernel_fusion"
