from __future__ import annotations

import pytest
import torch
import typer

from inference_pio.cli.options import Dtype, ask, assignments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("True", True),
        ("null", None),
        ("none", None),
        ("int8", "int8"),
        ("", ""),
        ("a=b", "a=b"),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
    ],
)
def test_a_value_is_read_as_json_or_as_a_word(text: str, value: object) -> None:
    assert assignments([f"one.key={text}"]) == {"one": {"key": value}}


def test_assignments_are_gathered_by_name() -> None:
    assert assignments(["a.x=1", "b.x=2", "a.y=3"]) == {"a": {"x": 1, "y": 3}, "b": {"x": 2}}


@pytest.mark.parametrize("text", ["", "a", "a.b", "a=3", ".b=3", "a.=3", "a b.c=3"])
def test_what_is_no_assignment_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"NAME\.KEY=VALUE"):
        assignments([text])


def test_a_parameter_given_twice_is_wrong_usage() -> None:
    with pytest.raises(typer.BadParameter, match=r"a\.x is given twice"):
        assignments(["a.x=1", "a.x=2"])


def test_options_become_what_is_asked() -> None:
    asked = ask("demo", "lossless", ["tensor_compression"], None, ["flash_attention.use_triton=true"], Dtype.auto, None)
    assert (asked.spec, asked.profile, asked.dtype) == ("demo", "lossless", "auto")
    assert asked.changes.enable == ("tensor_compression",)
    assert asked.changes.parameters == {"flash_attention": {"use_triton": True}}


@pytest.mark.parametrize("dtype", [Dtype.bfloat16, Dtype.float32])
def test_a_dtype_is_torchs(dtype: Dtype) -> None:
    assert ask("demo", "lossless", None, None, None, dtype, None).dtype == getattr(torch, dtype.value)
