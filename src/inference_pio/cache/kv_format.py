"""The formats that a cache may keep its keys and values in, by name, and how each of the two is coded."""

from __future__ import annotations

from inference_pio.cache.store import Kind
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.kernels.page_codes import PageForm
from inference_pio.kernels.triton.launch import PAGE

NONE = "none"
KV_FORMATS = ("int8", "int4", "fp8")
INT4_TOKENS = 32
"""Tokens that share a key channel's step in int4: keys lose most there, and a token still takes 0.297 of bfloat16."""
LARGEST_GROUP, SMALLEST_GROUP = 64, 16
"""Channels of a token that share a step: more lose more, fewer take more room beside the codes."""


def kv_format_named(name: str) -> str:
    """The name itself. Raises UnknownName with the known ones.

    >>> kv_format_named("int8"), kv_format_named("none")
    ('int8', 'none')
    """
    if name not in (NONE, *KV_FORMATS):
        raise UnknownName("kv_cache format", name, (NONE, *KV_FORMATS))
    return name


def group_of(width: int) -> int | None:
    """How many channels of a token share a step: the largest divisor of the width that is neither too large nor too
    small, or a narrow head as a whole; None where no group divides it.

    >>> group_of(128), group_of(80), group_of(8), group_of(131)
    (64, 40, 8, None)
    """
    if width < SMALLEST_GROUP:
        return width
    return next((group for group in range(LARGEST_GROUP, SMALLEST_GROUP - 1, -1) if width % group == 0), None)


def why_not_coded(name: str, key_width: int, value_width: int, *, latent: bool = False) -> str | None:
    """Why heads of these widths cannot be kept in a format, or None."""
    for what, width in (("keys", key_width),) if latent else (("keys", key_width), ("values", value_width)):
        if name == "int4" and width % 2:
            return f"{what} of {width} channels cannot be packed two codes a byte"
        if group_of(width) is None and (name == "fp8" or what == "values"):
            return f"no group of {SMALLEST_GROUP} to {LARGEST_GROUP} channels divides {what} of {width}"
    return None


def forms_of(name: str, kind: Kind) -> tuple[PageForm | None, PageForm | None]:
    """How the keys and the values of a kind are coded; None for what stays as it is, the rotated part of a latent.

    Keys have channels that stand out in every token, so whole numbers are counted from each channel's own range of a
    page. Values have none, and a token's own scale is known as soon as it comes. A latent is both; its channels decide.
    Raises InvalidSetting for widths that the format cannot hold.

    >>> import torch
    >>> forms_of("int4", Kind(1, 8, 128, 8, 128, torch.bfloat16, torch.device("cpu")))
    (PageForm(bits=4, group=0, tokens=32, floating=False), PageForm(bits=4, group=64, tokens=64, floating=False))
    """
    latent = kind.is_latent
    if reason := why_not_coded(name, kind.key_width, kind.value_width, latent=latent):
        raise InvalidSetting(f"kv_cache={kv_format_named(name)!r}: {reason}. Use kv_cache='none' for this model.")
    bits, floating = 4 if name == "int4" else 8, name == "fp8"
    key_group = group_of(kind.key_width) or 0 if floating else 0
    keys = PageForm(bits, key_group, INT4_TOKENS if name == "int4" else PAGE, floating)
    return keys, None if latent else PageForm(bits, group_of(kind.value_width) or 0, floating=floating)


def bits_of_token(name: str, kind: Kind) -> float:
    """Bits that a token of one layer and one row takes once it is coded; `none` is the model's own dtype."""
    own = 8.0 * kind.dtype.itemsize
    keys, values = (None, None) if name == NONE else forms_of(name, kind)
    key_bits, value_bits = (form.bits_of_number if form else own for form in (keys, values))
    return kind.key_heads * kind.key_width * key_bits + kind.value_heads * kind.value_width * value_bits
