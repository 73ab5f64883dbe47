"""Products of a few rows with large matrices, and what stands around them in a decoder: the plain truth first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.row_codes import (
    bare_values,
    coded_linear,
    group_of,
    in_groups,
    inputs_of,
    is_codes,
    scaled_values,
)

MOST_WEIGHTS = 3
Optionals = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class GemvParts:
    """A checked call: `rows` times `inputs`, weights with their scales and biases, and the columns of the result.

    Of a gated call the weights are two, the gate first, whether they were given as two or as one. `group`: so many
    weights of a row share a grid; 0 where they do not.
    """

    rows: int
    inputs: int
    columns: int
    weights: Sequence[torch.Tensor]
    scales: Sequence[torch.Tensor] | None
    biases: Optionals | None
    group: int = 0


def gemv_parts(
    x: torch.Tensor, weights: Sequence[torch.Tensor], *, scales: Sequence[torch.Tensor] | None = None,
    biases: Optionals | None = None, norm_weight: torch.Tensor | None = None, gated: bool = False,
    residual: torch.Tensor | None = None, out: torch.Tensor | None = None,
) -> GemvParts:  # fmt: skip
    """What a call means; raises InvalidSetting where its tensors do not belong together. No value is looked at."""
    if x.dim() != 2 or x.shape[1] == 0:
        raise InvalidSetting(f"x of shape {tuple(x.shape)} is no [rows, inputs]: give it two dimensions.")
    rows, inputs = x.shape
    if not 1 <= len(weights) <= MOST_WEIGHTS:
        raise InvalidSetting(f"{len(weights)} weights were given for one product: give 1 to {MOST_WEIGHTS}.")
    for weight, scale in zip(weights, scales or [None] * len(weights), strict=False):
        if weight.dim() != 2 or inputs_of(weight, scale) != inputs or weight.shape[0] == 0:
            raise InvalidSetting(f"a weight of shape {tuple(weight.shape)} does not take x of {inputs} inputs.")
        if is_codes(weight) != (scales is not None) or (scales is None and weight.dtype is not x.dtype):
            raise InvalidSetting(
                f"a weight of {weight.dtype} does not go with x of {x.dtype}: it has its dtype, or is int8, fp8 in "
                "uint8, or int4 in groups, with scales."
            )
    for name, vectors in (("scales", scales), ("biases", biases)):
        if vectors is not None:
            _check_vectors(name, vectors, weights)
    groups = {0} if scales is None else {group_of(*each) for each in zip(weights, scales, strict=True)}
    if len(groups) > 1:
        raise InvalidSetting(f"weights of one product come in groups of {sorted(groups)}: give those of one kind.")
    if norm_weight is not None and norm_weight.shape != (inputs,):
        raise InvalidSetting(f"a norm's weight of shape {tuple(norm_weight.shape)} does not scale {inputs} inputs.")
    if gated:
        weights, scales, biases = _gate_and_up(weights, scales, biases)
    columns = weights[0].shape[0] if gated else sum(weight.shape[0] for weight in weights)
    for name, tensor in (("a residual", residual), ("an out", out)):
        if tensor is not None and tensor.shape != (rows, columns):
            raise InvalidSetting(f"{name} of shape {tuple(tensor.shape)} is not the result's ({rows}, {columns}).")
    return GemvParts(rows, inputs, columns, weights, scales, biases, groups.pop())


def naive_gemv(
    x, weights, *, scales=None, biases=None, norm_weight=None, eps=0.0, gated=False, residual=None, rounded=True
):
    """`gemv` from its definition, in float32: every step rounded to the dtype of `x` as the library does, or none."""
    parts = gemv_parts(
        x, weights, scales=scales, biases=biases, norm_weight=norm_weight, gated=gated, residual=residual
    )
    kept = x.dtype if rounded else torch.float32
    vector = x.float()
    if norm_weight is not None:
        normal = vector * torch.rsqrt(vector.square().mean(-1, keepdim=True) + eps)
        vector = (normal.to(kept) * norm_weight.to(kept)).float()
    products = []
    for index, weight in enumerate(parts.weights):
        if parts.group:
            product = vector @ scaled_values(weight, parts.scales[index], torch.float32).mT
        else:
            product = vector @ bare_values(weight).mT
        if parts.scales is not None and not parts.group:
            product = product * parts.scales[index].float()
        if parts.biases is not None and parts.biases[index] is not None:
            product = product + parts.biases[index].float()
        products.append(product.to(kept))
    result = _gate(*products) if gated else torch.cat(products, -1)
    return result if residual is None else result + residual.to(kept)


def gemv(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    scales: Sequence[torch.Tensor] | None = None,
    biases: Optionals | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x` [M, K] times each of `weights` [N, K] (or codes with `scales` [N], or grids), plus `biases`: side by side,
    [M, sum of N].

    With `norm_weight` [K] `x` is RMS-normalised first. `gated`: the weights are gate and up, or one [2N, K] of both,
    and the result is silu(gate) * up, [M, N]. A `residual` is added last; `out` may be that very tensor, or float32.

    >>> gemv(torch.tensor([[1.0, 2.0]]), [torch.eye(2), torch.ones(1, 2)], residual=torch.ones(1, 3))
    tensor([[2., 3., 4.]])
    """
    parts = gemv_parts(
        x, weights, scales=scales, biases=biases, norm_weight=norm_weight, gated=gated, residual=residual, out=out
    )
    if norm_weight is not None:
        vector = x.float()
        vector = vector * torch.rsqrt(vector.square().mean(-1, keepdim=True) + eps)
        x = norm_weight * vector.to(x.dtype)
    biases = parts.biases or [None] * len(parts.weights)
    if parts.scales is None:
        products = [F.linear(x, weight, bias) for weight, bias in zip(parts.weights, biases, strict=True)]
    else:
        each = zip(parts.weights, parts.scales, biases, strict=True)
        products = [coded_linear(x, weight, scale, bias) for weight, scale, bias in each]
    result = _gate(*products) if gated else products[0] if len(products) == 1 else torch.cat(products, -1)
    if residual is not None:
        result = result + residual
    return result if out is None else out.copy_(result)


def _gate(gate, up):
    return F.silu(gate) * up


def _check_vectors(name: str, vectors: Optionals, weights: Sequence[torch.Tensor]) -> None:
    wanted = [tuple(weight.shape[:1]) for weight in weights]
    if name == "scales" and all(in_groups(*each) for each in zip(weights, vectors, strict=False)):
        wanted = [(len(scale), len(weight), 2) for weight, scale in zip(weights, vectors, strict=False)]
    found = [None if vector is None else tuple(vector.shape) for vector in vectors]
    fits = len(found) == len(wanted) and all(
        one == other or (one is None and name == "biases") for one, other in zip(found, wanted, strict=True)
    )
    if not fits:
        raise InvalidSetting(f"{name} of shapes {found} do not go with weights of {[size[0] for size in wanted]} rows.")


def _gate_and_up(weights, scales, biases):
    """Two weights, the gate first, with their scales and biases, from two or from one that holds both."""
    if len(weights) == 1 and weights[0].shape[0] % 2 == 0:
        half = weights[0].shape[0] // 2
        axis = int(scales is not None and in_groups(weights[0], scales[0]))
        return _halves(weights, half), _halves(scales, half, axis), _halves(biases, half)
    if len(weights) != 2 or weights[0].shape != weights[1].shape:
        shapes = [tuple(weight.shape) for weight in weights]
        raise InvalidSetting(f"weights of shapes {shapes} are no gate and up: give two alike, or one that holds both.")
    return weights, scales, biases


def _halves(given, half, axis=0):
    return None if given is None or given[0] is None else given[0].split(half, axis)
