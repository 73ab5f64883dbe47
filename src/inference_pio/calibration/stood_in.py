"""A model that computes with other modules for a while: their results take the place of its own, nothing is edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def stood_in(model: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within this, what the module at each path gives is what another one gives for the same arguments.

    >>> import torch
    >>> model = nn.Sequential(nn.Identity())
    >>> with stood_in(model, {"0": nn.Flatten(0)}):
    ...     model(torch.ones(2, 3)).shape
    torch.Size([6])
    """
    handles = []
    try:
        for path, other in others.items():
            handles.append(model.get_submodule(path).register_forward_hook(_instead(other), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _instead(other: nn.Module) -> Any:
    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        return other(*args, **kwargs)

    return give
