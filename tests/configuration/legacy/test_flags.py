from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference_pio.configuration.legacy.flags import flags_on, members_of_flags
from inference_pio.configuration.legacy.words import SWITCHES
from inference_pio.errors import InvalidSetting, UnknownName


@pytest.mark.parametrize("flag", SWITCHES)
@pytest.mark.parametrize("value", [True, False])
def test_every_switch_speaks_of_its_optimization(flag: str, value: bool) -> None:
    (member,), unmatched = members_of_flags({flag: value})
    assert (member.name, member.enabled, member.places) == (SWITCHES[flag], value, {flag: value})
    assert unmatched == []


@pytest.mark.parametrize(
    ("flag", "value", "owner", "today"),
    [
        ("sparse_attention_sparsity_ratio", 0.5, "sparse_attention", 0.5),
        ("offload_folder", "/tmp/x", "disk_offloading", "/tmp/x"),
        ("quantization_bits", 8, "tensor_compression", "int8"),
        ("quantization_bits", 4, "tensor_compression", "int4"),
        ("max_memory_ratio", 1, "disk_offloading", 1),
    ],
)
def test_a_value_is_kept_without_switching_anything_on(flag: str, value: Any, owner: str, today: Any) -> None:
    member = members_of_flags({flag: value})[0][0]
    assert (member.name, member.enabled) == (owner, False)
    assert (member.given[0].value, member.given[0].today) == (value, today)


def test_what_is_none_is_not_given() -> None:
    assert members_of_flags({"use_quantization": None, "offload_folder": None}) == ([], [])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"use_quantization": "true"}, "use_quantization must be true or false, not 'true': write it without quotes"),
        ({"use_quantization": 1}, "use_quantization must be true or false, not 1"),
        ({"quantization_bits": True}, "quantization_bits must be a whole number, not True"),
        ({"quantization_bits": 8.0}, "quantization_bits must be a whole number"),
        ({"quantization_bits": 0}, "quantization_bits must be from 1 to 32"),
        ({"sparse_attention_sparsity_ratio": 1.5}, "must be from 0 to 1"),
        ({"sparse_attention_sparsity_ratio": "0.5"}, "must be a number"),
        ({"max_memory_ratio": False}, "must be a number"),
        ({"offload_folder": 3}, "offload_folder must be a word"),
        ({"use_quantization": True, "enable_tensor_compression": False}, "contradict each other: both speak of tensor"),
        ({"use_fused_layer_norm": True, "enable_kernel_fusion": False}, "contradict each other: both speak of kernel"),
    ],
)
def test_wrong_values_and_contradictions_are_told(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        members_of_flags(flags)


def test_an_unknown_flag_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownName, match=r"unknown flag 'use_flash_attention'\. Did you mean 'use_flash_attention_2'"):
        members_of_flags({"use_flash_attention": True})


def test_flags_that_agree_are_one() -> None:
    (member,), _ = members_of_flags({"use_quantization": True, "enable_tensor_compression": True})
    assert member.enabled


def test_a_part_that_is_off_beside_its_whole_that_is_on_is_told() -> None:
    (member,), (unmatched,) = members_of_flags({"use_fused_layer_norm": False, "enable_kernel_fusion": True})
    assert member.enabled
    assert (unmatched.key, unmatched.value) == ("use_fused_layer_norm", False)


def test_an_object_is_asked_for_its_flags_and_what_looks_like_one_is_told() -> None:
    class Old:
        use_flash_attention_2 = True
        use_quantization = None

    old = Old()
    old.offload_folder = Path("/tmp/x")
    old.hidden_size, old.use_flash_attention, old.use_cache = 64, True, True
    flags, foreign = flags_on(old)
    assert flags == {"use_flash_attention_2": True, "offload_folder": "/tmp/x"}
    told = {one.key: one.reason for one in foreign}
    assert "did you mean 'use_flash_attention_2'" in told["use_flash_attention"]
    assert set(told) == {"use_flash_attention", "use_cache"}


def test_a_flag_of_the_class_or_in_a_slot_and_a_mistyped_one_are_told_too() -> None:
    class Old:
        __slots__ = ("enable_magic", "quantization_bit")
        use_flash_attention_2 = True
        use_tricks = 3

        def enable_logging(self) -> None:
            pass

    old = Old()
    old.enable_magic, old.quantization_bit = True, 4
    flags, foreign = flags_on(old)
    assert flags == {"use_flash_attention_2": True}
    assert {one.key: one.value for one in foreign} == {"enable_magic": True, "use_tricks": 3, "quantization_bit": 4}


def test_an_object_that_does_not_answer_is_told() -> None:
    class Broken:
        @property
        def use_quantization(self) -> bool:
            raise RuntimeError("no disk")

    with pytest.raises(InvalidSetting, match="use_quantization of this Broken cannot be read: no disk"):
        flags_on(Broken())
    assert flags_on(SimpleNamespace()) == ({}, [])
