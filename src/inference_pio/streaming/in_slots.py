"""A module of experts computes with what is in slots: by its own forward, on a stand-in that holds those tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.call_guards import put_around
from inference_pio.compat import EXPERTS_KEY
from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.streaming.expert_slots import Brought, ExpertSlots
from inference_pio.undo.journal import Journal

SLOTS = "_inference_pio_slots"
"""The attribute under which a module of experts knows its slots."""
SUMS_BY_TOKEN = ("grouped_mm", "batched_mm")
"""The library's functions that add a token's experts in the order in which its router names them."""


@dataclass(frozen=True)
class InSlots:
    """The stream that brings a module's experts, and the module's number in it."""

    stream: ExpertSlots
    number: int


def compute_in_slots(journal: Journal, module: nn.Module, stream: ExpertSlots, number: int) -> None:
    """From now on, experts compute with what their stream brings."""
    journal.set(module, SLOTS, InSlots(stream, number))
    put_around(journal, module, experts_in_slots)


@torch.compiler.disable  # type: ignore[misc, untyped-decorator] # which experts to copy is known at run time alone
def experts_in_slots(
    self: nn.Module, inner: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> Any:  # fmt: skip
    """The forward of such a module: by `inner`, what stood there before."""
    place: InSlots = self.__dict__[SLOTS]
    at, index = _index_of(given, named)
    if index is None:  # a call that names none computes with all
        index = torch.arange(place.stream.experts[place.number], device=place.stream.device)
    with place.stream.brought(place.number, index, in_order=at is None or not _sums_by_token(self)) as brought:
        if isinstance(at, int):
            given = (*given[:at], brought.index, *given[at + 1 :])
        elif at is not None:
            named = {**named, at: brought.index}
        return inner(_holding(self, brought), *given, **named)


def _index_of(given: tuple[Any, ...], named: dict[str, Any]) -> tuple[int | str | None, torch.Tensor | None]:
    """Where a call names the experts, in its one tensor of whole numbers, and that tensor."""
    every: list[tuple[int | str, Any]] = [*enumerate(given), *named.items()]
    found = [(at, one) for at, one in every if isinstance(one, torch.Tensor) and not one.dtype.is_floating_point]
    return found[0] if len(found) == 1 else (None, None)


def _sums_by_token(module: nn.Module) -> bool:
    """Whether what comes out does not depend on the order in which experts lie."""
    asked = getattr(getattr(module, "config", None), EXPERTS_KEY, None)
    return isinstance(module, CompressedExperts) or asked in SUMS_BY_TOKEN


def _holding(module: nn.Module, brought: Brought) -> nn.Module:
    """A module that computes as this one does, with other tensors."""
    twin = type(module).__new__(type(module))
    tables = (("_parameters", module._parameters), ("_buffers", module._buffers))
    held = {table: {name: brought.tensors.get(id(one), one) for name, one in old.items()} for table, old in tables}
    twin.__dict__.update(module.__dict__, **held)
    if "num_experts" in twin.__dict__:
        twin.__dict__["num_experts"] = brought.experts
    return twin
