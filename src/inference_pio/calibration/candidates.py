"""The forms that a layer may have where formats are mixed, with their bytes, as shapes alone tell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.calibration.allocation import KEPT, Choice
from inference_pio.calibration.rounding import Form
from inference_pio.formats.compressed_linear import GROUP
from inference_pio.formats.int4 import GROUPS
from inference_pio.formats.known import format_named

MIXED = "mixed"
FORMS = (*(("int4", group) for group in sorted(GROUPS, reverse=True)), ("int8", 0))
"""What is mixed, coarsest first. fp8 takes what int8 takes and loses more of every trained model."""


def choices_of(module: nn.Module, only: tuple[str, int] | None = None) -> list[Choice]:
    """What a linear layer or fused experts may become, the fewest bytes first, or that one form `only`; last, kept.

    What is lost is foretold by bits alone, as if all weights counted alike: the squared error of a number falls to a
    fourth by each bit.

    >>> [str(choice) for choice in choices_of(nn.Linear(64, 8))]
    ['int4, 64', 'int4, 32', 'int8', 'kept']
    """
    matrices, held = _matrices(module), weight_bytes(module)
    numbers = sum(one.numel() for one in matrices)
    found = []
    for name, group in [only] if only else FORMS:
        form = form_of(name, group, module)
        if not any(form.kind.why_not(one.shape[-1], form.group) for one in matrices):
            taken = sum(part.nbytes for one in matrices for part in form.kind.quantize(one, form.group))
            group = form.group if form.kind.grouped else 0
            found.append(Choice(name, group, taken, numbers * 4.0 ** (-8 * taken / numbers)))
    smaller = sorted((one for one in found if only or one.nbytes < held), key=lambda one: one.nbytes)
    return smaller if only else [*smaller, Choice(KEPT, 0, held)]


def form_of(name: str, group: int, module: nn.Module) -> Form:
    """A format of that name for what a module is."""
    known = format_named(name)
    return Form(known.linear if is_one_matrix(module) else known.experts, group or GROUP)


def is_one_matrix(module: nn.Module) -> bool:
    """Whether it is a linear layer, and no fused experts."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's own matrices; a bias stays as it is in every form."""
    return sum(one.nbytes for one in _matrices(module))


def forms_in(chosen: Mapping[str, Choice]) -> dict[str, Any]:
    """A choice as decisions record it: formats by path, and groups of those that have them."""
    return {
        "formats": {path: one.format for path, one in chosen.items()},
        "groups": {path: one.group for path, one in chosen.items() if one.group},
    }


def _matrices(module: nn.Module) -> list[torch.Tensor]:
    """The weights as products use them, [..., N, K], without values."""
    weights = [one.detach().to("meta") for one in module.parameters(recurse=False) if one.dim() > 1]
    return [one.t() for one in weights] if isinstance(module, Conv1D) else weights
