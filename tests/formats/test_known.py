"""The table of formats finds every file that has one."""

from __future__ import annotations

import pytest

from inference_pio.errors import UnknownName
from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.known import format_named, known_formats


def test_each_format_has_a_linear_and_experts_of_its_name() -> None:
    assert list(known_formats()) == ["exponent12", "fp8", "int4", "int8"]
    for name, known in known_formats().items():
        assert known.linear.format == known.experts.format == name
        assert issubclass(known.linear, CompressedLinear)
        assert issubclass(known.experts, CompressedExperts)


def test_an_unknown_format_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown format 'int3'. Did you mean .*'int4'"):
        format_named("int3")


def test_layers_of_others_are_not_in_the_table() -> None:
    known_formats.cache_clear()
    type("Theirs", (CompressedLinear,), {"format": "theirs", "__module__": "elsewhere"})
    assert "theirs" not in known_formats()
