"""A model that is as it was after it has run: what its modules noted on themselves is taken off them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """After this, every module has the attributes that it had: some of the library's note positions for a next call.

    >>> model = nn.Identity()
    >>> with left_as_found(model):
    ...     model.rope_deltas = 3
    >>> hasattr(model, "rope_deltas")
    False
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
