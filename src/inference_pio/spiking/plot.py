"""A picture of what fires: the spikes of one layer's neurons over a prompt, and the spikes a value of every layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import InvalidModel, UnknownName
from inference_pio.files import write_atomically
from inference_pio.kernels.spikes import potentials, trains
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.module import SpikingModule

NEURONS, TOKENS = 64, 48
"""Drawn at most."""
UP, DOWN, GREY = "#2166ac", "#d6604d", "#888"
DOT, ROW = 3, 14


def draw_spikes(
    model: nn.Module, inputs: Mapping[str, Any], file: str | os.PathLike[str], layer: str | None = None
) -> Path:
    """Run a spiking model on `inputs` and draw, as SVG, what the neurons before `layer` (the first one) do, and rates.

    Raises InvalidModel for a model without spiking linear layers, UnknownName for a layer that is none of them.
    """
    there = {path: module for path, module in model.named_modules() if isinstance(module, SpikingLinear)}
    if not there:
        raise InvalidModel(f"this {type(model).__name__} has no spiking linear layer: apply snn_conversion first.")
    if layer is not None and layer not in there:
        raise UnknownName("spiking linear layer", layer, there)
    path = layer or next(iter(there))
    seen: list[Tensor] = []
    handle = there[path].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    fired = raster(there[path], seen[0].flatten(0, -2)[:TOKENS])
    rates = next(module.tally for module in there.values()).to_json()["spikes_per_activation_by_layer"]
    write_atomically(file, _svg(path, there[path], fired, rates))
    return Path(file)


def raster(layer: SpikingLinear, rows: Tensor) -> Tensor:
    """The spikes (-1, 0, 1) of a layer's first neurons for rows [tokens, n]: [neurons, tokens * steps]."""
    held = potentials(rows[:, :NEURONS], layer._buffers["threshold"][:NEURONS], layer.code)  # type: ignore[index]
    steps = [spikes for spikes, _ in trains(held, layer.code)][: layer.code.steps]
    return torch.stack(steps, 1).flatten(0, 1).T.to(torch.int8)


def _svg(path: str, layer: SpikingModule, fired: Tensor, rates: Mapping[str, float | None]) -> str:
    shown = {name: rate for name, rate in rates.items() if rate is not None}
    top, wide = 40 + fired.shape[0] * DOT, 40 + max(fired.shape[1] * DOT, 640)
    high, most = top + 50 + ROW * len(shown), max(shown.values(), default=1.0) or 1.0
    dots = [
        f'<rect x="{20 + column * DOT}" y="{30 + row * DOT}" width="2" height="2" fill="{UP if up > 0 else DOWN}"/>'
        for row, column in fired.nonzero().tolist()
        if (up := int(fired[row, column]))
    ]
    bars = [
        f'<text x="20" y="{top + 50 + ROW * place}">{escape(name)}</text>'
        f'<rect x="320" y="{top + 41 + ROW * place}" width="{240 * rate / most:.1f}" height="10" fill="{UP}"/>'
        f'<text x="570" y="{top + 50 + ROW * place}">{rate:.2f}</text>'
        for place, (name, rate) in enumerate(shown.items())
    ]
    title = f"{path}: {fired.shape[0]} neurons, {layer.code.steps} steps a token; up blue, down red"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" font-family="sans-serif" '
        f'font-size="11" fill="{GREY}">',
        f"<title>Spikes of {escape(path)}</title>", f'<text x="20" y="18">{escape(title)}</text>', *dots,
        f'<text x="20" y="{top + 24}">spikes a value, by layer</text>', *bars, "</svg>",
    ])  # fmt: skip
