"""Baseline methods, each written in the plainest way: what any later method has to beat on the same draws."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .evaluate import needle_grid, slices
from .retrieval import Lines

DRAWS = 4
KEPT = 0.75
RANK_RATIO = 0.5
Change = Callable[[Any, torch.Generator], None]


def matrices(model: Any) -> Iterator[nn.Parameter]:
    """The weights that get compressed: projections and experts of the decoder, not tables, heads, routers or vision."""
    decoder = getattr(model.model, "language_model", model.model)
    for name, weight in decoder.layers.named_parameters():
        if weight.ndim >= 2 and not name.endswith("gate.weight"):
            yield weight


def rounded(weight: torch.Tensor, bits: int, group: int | None) -> torch.Tensor:
    """Round to nearest: symmetric with a scale per row, or asymmetric with scale and offset per group of inputs."""
    if group is None:
        scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-8) / (2 ** (bits - 1) - 1)
        return (weight / scale).round() * scale
    grouped = weight.unflatten(-1, (-1, min(group, weight.shape[-1])))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-8) / (2**bits - 1)
    return (((grouped - low) / scale).round() * scale + low).flatten(-2)


def low_rank(weight: torch.Tensor, ratio: float) -> torch.Tensor:
    """The nearest matrix whose two factors hold `ratio` of the weight's numbers."""
    rows, columns = weight.shape[-2:]
    rank = max(1, int(ratio * rows * columns / (rows + columns)))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]


def _each(edit: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(model: Any, _: torch.Generator) -> None:
        for weight in matrices(model):
            weight.copy_(edit(weight.float()).to(weight.dtype))

    return change


def _prune_channels(by_size: bool) -> Change:
    def change(model: Any, chance: torch.Generator) -> None:
        for gate_up, down in _feed_forwards(model):
            size = gate_up[0].float().square().sum(-1).sqrt()
            for part in gate_up[1:]:
                size = size * part.float().square().sum(-1).sqrt()
            score = size * down.float().square().sum(-2).sqrt()
            dropped = _lowest(score if by_size else _chance(score, chance))
            down.masked_fill_(dropped[..., None, :], 0)

    return change


def _prune_experts(by_size: bool) -> Change:
    def change(model: Any, chance: torch.Generator) -> None:
        for module in model.modules():
            if hasattr(module, "experts") and hasattr(module, "gate"):
                score = module.experts.gate_up_proj.float().square().sum((1, 2))
                score = score + module.experts.down_proj.float().square().sum((1, 2))
                dropped = _lowest(score if by_size else _chance(score, chance))
                module.gate.forward = _without(module.gate, dropped)

    return change


def _without(gate: Any, dropped: torch.Tensor) -> Any:
    """A router that never chooses the dropped experts: the best of the kept ones take their place."""
    plain_linear = F.linear
    plain = type(gate).forward

    def forward(states: torch.Tensor) -> Any:
        def linear(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return plain_linear(inputs, weight).masked_fill(dropped, -1e4)

        bias = getattr(gate, "e_score_correction_bias", None)
        F.linear = linear
        try:
            if bias is not None:
                gate.e_score_correction_bias = bias.masked_fill(dropped, -1e4)
            return plain(gate, states)
        finally:
            F.linear = plain_linear
            if bias is not None:
                gate.e_score_correction_bias = bias

    return forward


def _feed_forwards(model: Any) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    decoder = getattr(model.model, "language_model", model.model)
    for module in decoder.layers.modules():
        if hasattr(module, "gate_up_proj"):
            yield list(module.gate_up_proj.data.chunk(2, dim=1)), module.down_proj.data
        elif hasattr(module, "gate_proj"):
            yield [module.gate_proj.weight.data, module.up_proj.weight.data], module.down_proj.weight.data


def _lowest(score: torch.Tensor) -> torch.Tensor:
    dropped = int(score.shape[-1] * (1 - KEPT))
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, score.argsort(-1)[..., :dropped], True)


def _chance(score: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    return torch.rand(score.shape, generator=chance).to(score.device)


def methods(model: Any) -> dict[str, Change]:
    """The baseline methods that apply to this model, by name."""
    found = {
        "int8_per_row": _each(lambda weight: rounded(weight, 8, None)),
        "int4_group32": _each(lambda weight: rounded(weight, 4, 32)),
        "int4_group128": _each(lambda weight: rounded(weight, 4, 128)),
        "channels_by_magnitude": _prune_channels(by_size=True),
        "channels_by_chance": _prune_channels(by_size=False),
        "svd_half": _each(lambda weight: low_rank(weight, RANK_RATIO)),
    }
    if any(hasattr(module, "gate_up_proj") for module in model.modules()):
        found["experts_by_magnitude"] = _prune_experts(by_size=True)
        found["experts_by_chance"] = _prune_experts(by_size=False)
    return found


@torch.no_grad()
def losses(model: Any, held_out: np.ndarray, lines: Lines, rows: int, length: int) -> dict[str, dict[str, list[float]]]:
    """For each method and draw: KL in nats per token to the model, perplexity ratio, top-1 agreement, needles found."""
    drawn = [slices(held_out, rows, seed=draw) for draw in range(DRAWS)]
    original = [_log_probabilities(model, part) for part in drawn]
    table: dict[str, dict[str, list[float]]] = {}
    for name, change in methods(model).items():
        for draw, part in enumerate(drawn):
            changed = copy.deepcopy(model)
            change(changed, torch.Generator().manual_seed(draw))
            figures = _compare(original[draw], _log_probabilities(changed, part), part)
            grid = needle_grid(changed, lines, held_out, False, (length,), min(4, rows), 10 + draw, (0.1, 0.5, 0.9))
            figures["needles"] = float(np.mean(list(grid[str(length)].values())))
            for figure, value in figures.items():
                table.setdefault(name, {}).setdefault(figure, []).append(value)
    return table


def _log_probabilities(model: Any, rows: np.ndarray) -> torch.Tensor:
    tokens = torch.from_numpy(rows).to(model.device)
    return torch.cat(
        [model(input_ids=part, use_cache=False).logits[:, :-1].float().log_softmax(-1) for part in tokens.split(8)]
    )


def _compare(before: torch.Tensor, after: torch.Tensor, rows: np.ndarray) -> dict[str, float]:
    answers = torch.from_numpy(rows[:, 1:, None]).to(before.device)
    nats = [float(-part.gather(-1, answers).mean()) for part in (before, after)]
    return {
        "kl_nats": float((before.exp() * (before - after)).sum(-1).mean()),
        "perplexity_ratio": math.exp(nats[1] - nats[0]),
        "top1": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
    }
