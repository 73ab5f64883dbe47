"""Linear layers that take one input, merged: one tensor holds their weights side by side, each still with its own name.

At each call it is seen whether weights still lie side by side, so that a copy, or a weight that somebody gave other
data, is computed as it is. Codes cannot lie so: layers that hold weights exactly, as codes, tell that they are merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from inference_pio.anatomy.call_guards import is_watched
from inference_pio.anatomy.parts import is_adapted
from inference_pio.undo.journal import Journal
from inference_pio.undo.slots import storage_key, tensors_of

Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""`multiply(x, weight, bias)`: a linear layer's product."""
MERGED = "_inference_pio_merged"
"""The attribute by which layers of codes tell that they are merged: a larger product may round otherwise than the
library's, which `exact=True` asks for."""


class Sharing:
    """Which storages of a model several of its tensors use, looked up once for all its layers."""

    def __init__(self, model: nn.Module) -> None:
        tensors = list(tensors_of(model))
        self.tensors = Counter(id(tensor) for tensor in tensors)
        self.storages = Counter(storage_key(tensor) for tensor in {id(one): one for one in tensors}.values())

    def shares(self, tensor: torch.Tensor) -> bool:
        return self.tensors[id(tensor)] > 1 or self.storages[storage_key(tensor)] > 1


def why_separate(layers: Sequence[nn.Module], sharing: Sharing) -> str | None:
    """Why layers of one input keep tensors of their own, or None."""
    for layer in layers:
        if is_adapted(layer):
            return "an adapter is wrapped around one of its layers"
        if type(layer) is not nn.Linear and not _is_exact(layer):
            return f"one of its layers is a {type(layer).__name__}, and no plain Linear"
        if is_watched(layer) or "forward" in layer.__dict__ or hasattr(layer, "parametrizations"):
            return "one of its layers carries hooks, a parametrization, or a forward of somebody else"
        if not _is_exact(layer) and (type(layer.weight) is not nn.Parameter or not layer.weight.numel()):
            return "one of its weights is empty, or of a kind of its own"
    tensors = [tensor for layer in layers for tensor in layer.parameters(recurse=False)]
    if any(sharing.shares(tensor) for tensor in tensors):
        return "one of its weights is shared with another place"
    kinds = {(tensor.dtype, tensor.device, tensor.shape[1:]) for tensor in tensors if tensor.dim() == 2}
    if len(kinds) > 1:
        return "its weights differ in dtype, device or width"
    if len({layer.bias is None for layer in layers}) > 1:
        return "some of its layers have a bias and some have none"
    return None


@torch.no_grad()
def merge(journal: Journal, layers: Sequence[nn.Module]) -> None:
    """Put the weights (and biases) of layers side by side in one tensor; the Parameters become views of it.

    The old memory is let go with each call, so no more than one merged tensor is held twice at a time. Where a
    layer holds exact weights as codes, all stay where they are, and are put side by side in each call.
    """
    if coded := [layer for layer in layers if _is_exact(layer)]:
        for layer in coded:
            journal.set(layer, MERGED, True)
        return
    for name in ("weight", "bias"):
        tensors = [layer._parameters[name] for layer in layers]
        if None not in tensors:
            parts: list[torch.Tensor] = tensors  # type: ignore[assignment]
            whole = torch.cat([part.detach() for part in parts])
            homes = torch.split(whole, [len(part) for part in parts])
            journal.rehouse(dict(zip(parts, homes, strict=True)))


def together(layers: Sequence[nn.Module], name: str = "weight") -> torch.Tensor | None:
    """The weights (or biases) of layers as the one tensor in which they lie side by side; None if they do not."""
    first: torch.Tensor = layers[0]._parameters[name]  # type: ignore[assignment]
    end = first.data_ptr()
    rows, shape = 0, first.shape[1:]
    for layer in layers:
        part: torch.Tensor = layer._parameters[name]  # type: ignore[assignment]
        if part.data_ptr() != end or part.dtype != first.dtype or part.shape[1:] != shape:
            return None
        rows, end = rows + part.shape[0], end + part.nbytes
    held = first.untyped_storage()
    if end > held.data_ptr() + held.nbytes():  # neighbours by chance
        return None
    return first.as_strided((rows, *shape), first.stride())


def merged_linear(
    layers: Sequence[nn.Module], x: torch.Tensor, multiply: Multiply = F.linear
) -> torch.Tensor | None:  # fmt: skip
    """What all layers make of `x`, side by side in one product; None where each must be called."""
    if any(is_watched(layer) or "forward" in layer.__dict__ for layer in layers):
        return None
    if any(MERGED in layer.__dict__ for layer in layers):
        return _product_with_codes(layers, x, multiply)
    if any(type(layer) is not nn.Linear for layer in layers):
        return None
    weight = together(layers)
    if weight is None:
        return None
    if layers[0]._parameters["bias"] is None:
        return multiply(x, weight, None)
    bias = together(layers, "bias")
    return None if bias is None else multiply(x, weight, bias)


def _product_with_codes(layers: Sequence[nn.Module], x: torch.Tensor, multiply: Multiply) -> torch.Tensor | None:
    """The bits that merged plain layers give, where some hold codes from which every bit of their weights comes back,
    and the others were kept as they are."""
    if any(type(layer) is not nn.Linear and not _is_exact(layer) for layer in layers):
        return None
    biases = [layer._parameters["bias"] for layer in layers]
    if len({bias is None for bias in biases}) > 1:
        return None
    weights = [layer.dequantize(x.dtype) if _is_exact(layer) else layer.weight for layer in layers]  # type: ignore[operator]
    return multiply(x, torch.cat(weights), None if None in biases else torch.cat(biases))  # type: ignore[arg-type]


def _is_exact(layer: nn.Module) -> bool:
    return getattr(layer, "exact", False) is True
