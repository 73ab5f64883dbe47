"""Each format has a name, a form for keys and values, and a price; what it cannot hold is told before it is tried."""

from __future__ import annotations

import pytest
import torch

from inference_pio.cache.kv_format import (
    KV_FORMATS,
    NONE,
    bits_of_token,
    forms_of,
    group_of,
    kv_format_named,
    why_not_coded,
)
from inference_pio.cache.store import Kind
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.kernels.page_codes import PageForm

CPU = torch.device("cpu")


def kind(key_width: int, value_width: int | None = None, heads: int = 8) -> Kind:
    return Kind(1, heads, key_width, heads, value_width or key_width, torch.bfloat16, CPU)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"'int9'. Did you mean 'int8' or 'int4'\? Known: fp8, int4, int8, none"):
        kv_format_named("int9")


@pytest.mark.parametrize("width", range(1, 300))
def test_a_group_divides_its_width_and_is_neither_too_large_nor_too_small(width: int) -> None:
    group = group_of(width)
    divisors = [size for size in range(16, 65) if width % size == 0]
    assert group == (width if width < 16 else max(divisors, default=None))


@pytest.mark.parametrize(
    ("name", "most", "at_128", "at_64", "at_16"),
    [("int8", 0.54, 8.5, 8.5, 9.25), ("int4", 0.30, 4.75, 4.75, 5.5), ("fp8", 0.54, 8.25, 8.25, 9.0)],
)
def test_the_price_of_a_token(name: str, most: float, at_128: float, at_64: float, at_16: float) -> None:
    for width, bits in ((128, at_128), (64, at_64), (16, at_16)):
        assert bits_of_token(name, kind(width)) / (2 * 8 * width) == bits
    assert bits_of_token(name, kind(128)) / bits_of_token(NONE, kind(128)) <= most


def test_a_latent_is_coded_by_channel_and_its_rotated_part_stays() -> None:
    latent = kind(512, 64, heads=1)
    assert forms_of("int8", latent) == (PageForm(8), None)
    assert bits_of_token("int8", latent) == 512 * 8.5 + 64 * 16
    assert forms_of("fp8", latent) == (PageForm(8, 64, floating=True), None)


@pytest.mark.parametrize(
    ("name", "widths", "reason"),
    [
        ("int8", (64, 67), "no group of 16 to 64 channels divides values of 67"),
        ("fp8", (67, 64), "no group of 16 to 64 channels divides keys of 67"),
        ("int4", (9, 64), "keys of 9 channels cannot be packed two codes a byte"),
        ("int4", (64, 27), "values of 27 channels cannot be packed two codes a byte"),
    ],
)
def test_widths_that_no_group_divides_are_refused(name: str, widths: tuple[int, int], reason: str) -> None:
    assert why_not_coded(name, *widths) == reason
    with pytest.raises(InvalidSetting, match=f"kv_cache='{name}': {reason}. Use kv_cache='none'"):
        forms_of(name, kind(*widths))


def test_keys_of_any_width_and_rotated_parts_of_any_width_are_held_where_nothing_groups_them() -> None:
    assert why_not_coded("int8", 67, 64) is None
    for name in KV_FORMATS:
        assert why_not_coded(name, 512, 67, latent=True) is None
