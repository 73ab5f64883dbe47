"""What the chosen experts of each token give, in two products; the plain truth first.

Shapes: M tokens [M, H], experts `gate_up` [E, 2I, H] (gate, then up) and `down` [E, H, I], of which `index` [M, k]
names each token's. A shared expert of S rows, which every token visits, stands behind the chosen ones:
[M, k * I + S]. Weights may be codes: int8, or fp8 in uint8, with one scale a row; int4 with grids. An index of E or
more stands for an expert that lives elsewhere, and contributes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.row_codes import coded_linear, in_groups, inputs_of, is_codes, scaled_values

Parts = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Gate and up of a shared expert: one behind the other in one tensor, or two."""


def naive_expert_gate_up(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    index: torch.Tensor,
    *,
    shared: Parts | None = None,
    scales: torch.Tensor | None = None,
    shared_scales: Parts | None = None,
) -> torch.Tensor:
    """silu(gate) * up of every chosen expert, then of the shared one, in float32: [M, k * I (+ S)]."""
    x, weight = x.float(), _float(gate_up, scales)
    found = x.new_zeros(*index.shape, gate_up.shape[1] // 2)
    for token, slot in (index < len(weight)).nonzero().tolist():
        found[token, slot] = _gated(weight[index[token, slot]] @ x[token])
    parts = [found.flatten(1)]
    if shared is not None:
        parts.append(_gated(x @ _joined(shared, shared_scales).T))
    return torch.cat(parts, -1)


def naive_expert_down(
    hidden: torch.Tensor,
    down: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    *,
    shared: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    shared_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted sum of what `down` makes of each expert's part of `hidden`, the shared one's and `residual`."""
    hidden, matrices = hidden.float(), _float(down, scales)
    chosen = hidden[:, : index.shape[1] * inputs_of(down, scales)].unflatten(1, (index.shape[1], -1))
    found = hidden.new_zeros(len(hidden), down.shape[1])
    for token, slot in (index < len(matrices)).nonzero().tolist():
        found[token] += weight[token, slot].float() * (matrices[index[token, slot]] @ chosen[token, slot])
    if shared is not None:
        found += hidden[:, -inputs_of(shared, shared_scales) :] @ _float(shared, shared_scales).T
    return found if residual is None else found + residual.float()


def expert_gate_up(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    index: torch.Tensor,
    *,
    shared: Parts | None = None,
    scales: torch.Tensor | None = None,
    shared_scales: Parts | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same with the library's roundings: the bits of its `grouped_mm` on a CPU, of its `batched_mm` elsewhere."""
    check_scales(gate_up, scales)
    rows = x.repeat_interleave(index.shape[1], 0)
    parts = [_gated(_products(rows, gate_up, index.flatten(), scales)).view(len(x), -1)]
    if shared is not None:
        (gate, up), (gate_scales, up_scales) = two(shared), two(shared_scales)
        check_scales(gate, gate_scales)
        parts.append(F.silu(_linear(x, gate, gate_scales)) * _linear(x, up, up_scales))
    return torch.cat(parts, -1, out=out)


def expert_down(
    hidden: torch.Tensor,
    down: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    *,
    shared: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    shared_scales: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same, likewise: products rounded, then weighted, summed over the chosen, and rounded after each addition."""
    check_scales(down, scales)
    inner = inputs_of(down, scales)
    chosen = hidden[:, : index.shape[1] * inner].reshape(-1, inner)
    products = _products(chosen, down, index.flatten(), scales) * weight.reshape(-1, 1)
    found = products.view(*index.shape, -1).sum(1).to(hidden.dtype)
    if shared is not None:
        check_scales(shared, shared_scales)
        found = found + _linear(hidden[:, -inputs_of(shared, shared_scales) :], shared, shared_scales)
    if residual is not None:
        found = residual + found
    return found if out is None else out.copy_(found)


def two(parts: Parts | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gate and up of a shared expert, as views where they lie behind one another.

    >>> [tuple(part.shape) for part in two(torch.ones(6, 4))]
    [(3, 4), (3, 4)]
    """
    if parts is None:
        return None, None
    gate, up = parts.chunk(2, parts.dim() - 2) if isinstance(parts, torch.Tensor) else parts
    return gate, up


def check_scales(weight: torch.Tensor, scales: torch.Tensor | None) -> None:
    """Raise InvalidSetting where codes have no scales, weights have some, or they are not one a row."""
    coded, wanted = is_codes(weight), weight.shape[:-1]
    if scales is not None and in_groups(weight, scales):
        wanted = (*weight.shape[:-2], scales.shape[-3], weight.shape[-2], 2)
    if coded != (scales is not None) or (scales is not None and scales.shape != wanted):
        told = "none" if scales is None else f"some of shape {tuple(scales.shape)}"
        raise InvalidSetting(
            f"codes, and they alone, go with one scale a row, or one grid a group: weights of {weight.dtype} and "
            f"shape {tuple(weight.shape)} were given {told}."
        )


def _gated(both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


def _linear(rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return F.linear(rows, weight) if scales is None else coded_linear(rows, weight, scales)


def _products(
    rows: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, scales: torch.Tensor | None
) -> torch.Tensor:
    """Each of `rows` [P, in] times its own expert of [E, out, in]; zeros for one that lives elsewhere."""
    way = _grouped if rows.device.type == "cpu" else _gathered
    return way(rows, weight, index, scales)


def _grouped(rows, weight, index, scales):
    """Every expert once for all its rows, read where it lies."""
    out = rows.new_zeros(len(rows), weight.shape[1])
    for expert in index.unique().tolist():
        if expert < len(weight):
            mine = (index == expert).nonzero().flatten()
            out[mine] = _linear(rows[mine], weight[expert], None if scales is None else scales[expert])
    return out


def _gathered(rows, weight, index, scales):
    """Every row by itself, over a copy of its expert: nothing waits for the device."""
    here = index.clamp(max=len(weight) - 1)
    chosen = weight[here] if scales is None else scaled_values(weight[here], scales[here], rows.dtype)
    found = torch.bmm(chosen, rows[..., None])[..., 0]
    return found.masked_fill((index >= len(weight))[:, None], 0.0)


def _float(weight: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return weight.float() if scales is None else scaled_values(weight, scales, torch.float32)


def _joined(parts: Parts, scales: Parts | None) -> torch.Tensor:
    (gate, up), (gate_scales, up_scales) = two(parts), two(scales)
    return torch.cat([_float(one, scale) for one, scale in ((gate, gate_scales), (up, up_scales))])
