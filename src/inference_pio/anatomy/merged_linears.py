"""Linear layers that take one input, merged: one tensor holds their weights side by side, each still with its own name.

At each call it is seen whether weights still lie side by side, so that a copy, or a weight that somebody gave other
data, is computed as it is. So do codes that stand row by row, on a CPU; a GPU's steps multiply them where they are.
Others cannot: layers that hold weights exactly, as such codes, tell that they are merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

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
    coded = _is_coded(layers)
    for layer in layers:
        if is_adapted(layer):
            return "an adapter is wrapped around one of its layers"
        if type(layer) is not nn.Linear and not _is_exact(layer) and not coded:
            return f"one of its layers is a {type(layer).__name__}, and no plain Linear"
        if is_called(layer) or hasattr(layer, "parametrizations"):
            return "one of its layers carries hooks, a parametrization, or a forward of somebody else"
        if type(layer) is nn.Linear and (type(layer.weight) is not nn.Parameter or not layer.weight.numel()):
            return "one of its weights is empty, or of a kind of its own"
    tensors = [tensor for layer in layers for tensor in (_parts(layer) if coded else layer.parameters(recurse=False))]
    if any(sharing.shares(tensor) for tensor in tensors):
        return "one of its weights is shared with another place"
    kinds = {(tensor.dtype, tensor.device, tensor.shape[1:]) for tensor in tensors if tensor.dim() == 2}
    if len(kinds) > 1:
        return "its weights differ in dtype, device or width"
    if coded and tensors[0].device.type != "cpu":
        return "a step on a GPU multiplies codes side by side where they are"
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
    for tensors in zip(*map(_parts, layers), strict=True):
        whole = torch.cat([part.detach() for part in tensors])
        homes = torch.split(whole, [len(part) for part in tensors])
        journal.rehouse(dict(zip(tensors, homes, strict=True)))


def together(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Weights, codes, scales or biases of layers as the one tensor in which they lie side by side, or None."""
    first = parts[0]
    end, rows = first.data_ptr(), 0
    dtype, shape = first.dtype, first.shape[1:]
    for part in parts:
        if part.data_ptr() != end or part.dtype is not dtype or part.shape[1:] != shape:
            return None
        rows, end = rows + len(part), end + part.nbytes
    held = first.untyped_storage()
    if end > held.data_ptr() + held.nbytes():  # neighbours by chance
        return None
    return first.as_strided((rows, *shape), first.stride())


def is_called(layer: nn.Module) -> bool:
    """Whether a layer must be called and not read: hooks see it, or it has a forward of its own."""
    return is_watched(layer) or "forward" in layer.__dict__


def product_of(
    layers: Sequence[nn.Module], multiply: Multiply = F.linear
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What makes of `x` all that layers would, side by side in one product, while their tensors stay where they are.

    None where they do not lie side by side, or compute in a way of their own; whether they `is_called`, the asker asks.
    """
    coded = _is_coded(layers)
    if not coded and any(type(layer) is not nn.Linear or layer._parameters.get("weight") is None for layer in layers):
        return None
    held = [_parts(layer) for layer in layers]
    if len({len(parts) for parts in held}) > 1:  # a bias has come or gone
        return None
    wholes = []
    for parts in zip(*held, strict=True):
        if (whole := together(parts)) is None:
            return None
        wholes.append(whole)
    bias = None if layers[0]._parameters["bias"] is None else wholes.pop()
    if not coded:
        return lambda x: multiply(x, wholes[0], bias)
    coded_product: Any = layers[0].multiply
    return lambda x: coded_product(x, *wholes, bias=bias)


def merged_linear(
    layers: Sequence[nn.Module], x: torch.Tensor, multiply: Multiply = F.linear
) -> torch.Tensor | None:  # fmt: skip
    """What all layers make of `x`, side by side in one product; None where each must be called."""
    if any(map(is_called, layers)):
        return None
    if any(MERGED in layer.__dict__ for layer in layers):
        return _product_with_codes(layers, x, multiply)
    product = product_of(layers, multiply)
    return None if product is None else product(x)


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


def _is_coded(layers: Sequence[nn.Module]) -> bool:
    """Whether layers of one class hold what can lie side by side: codes of rows, and what stands beside, row by row."""
    kind = type(layers[0])
    return getattr(kind, "row_by_row", False) is True and all(type(layer) is kind for layer in layers)


def _parts(layer: nn.Module) -> list[torch.Tensor]:
    """The tensors of a layer that have a row for each of its outputs: its weight, or codes and scales, and its bias."""
    held = [layer._parameters["weight"]] if type(layer) is nn.Linear else layer.held("weight")  # type: ignore[operator]
    bias = layer._parameters["bias"]
    return [*held] if bias is None else [*held, bias]
