"""The formats there are, by name: every file of this package that mixes one into layers is found by itself."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from inference_pio import formats
from inference_pio.errors import UnknownName
from inference_pio.formats.compressed_embedding import CompressedEmbedding
from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear


@dataclass(frozen=True)
class KnownFormat:
    """The modules of one format; `embedding` where its codes can be looked up row by row."""

    linear: type[CompressedLinear]
    experts: type[CompressedExperts]
    embedding: type[CompressedEmbedding] | None


@functools.cache
def known_formats() -> dict[str, KnownFormat]:
    """All formats by name, in alphabetic order.

    >>> sorted(known_formats())
    ['exponent12', 'fp8', 'int4', 'int8']
    """
    for module in pkgutil.iter_modules(formats.__path__):
        importlib.import_module(f"{formats.__name__}.{module.name}")
    linear, experts, embedding = map(_by_name, (CompressedLinear, CompressedExperts, CompressedEmbedding))
    return {name: KnownFormat(linear[name], experts[name], embedding.get(name)) for name in sorted(linear)}


def _by_name(kind: Any) -> dict[str, Any]:
    return {one.format: one for one in kind.__subclasses__() if one.__module__.startswith(HERE)}


HERE = f"{formats.__name__}."


def format_named(name: str) -> KnownFormat:
    """The format of a name. Raises UnknownName with the known ones."""
    known = known_formats()
    if name not in known:
        raise UnknownName("format", name, known)
    return known[name]
