"""Last matrices of experts that stay, fitted again so that their mixture says what it said before others went."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.anatomy.decoder_mlp import EXPERTS, ROUTER
from inference_pio.anatomy.prunable import Weights
from inference_pio.anatomy.routed_experts import RoutedExperts
from inference_pio.calibration.expert_inputs import GATE_UP, routed
from inference_pio.calibration.forward import run_batches
from inference_pio.calibration.rows import Rows
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.twins import pruned_twin
from inference_pio.kernels.linear_fit import added_map

SWEEPS = 2
"""Times that each expert in turn makes up for what all leave: on trained models the second takes 4% of the divergence
that is left by the first, a third less than 1%."""


@torch.no_grad()
def refit_experts(
    model: nn.Module, one: RoutedExperts, weights: Weights, count: int, source: CalibrationSource
) -> Weights:
    """`weights` of `count` experts with other last matrices: by least squares over the tokens that are sent to each,
    one after the other, so that together they come closer with every step. Nothing of the model is edited.
    """
    hidden, wanted = _seen(model, one, source)
    twin = pruned_twin(one, weights, count)
    experts: Any = twin.get_submodule(EXPERTS)
    _, shares, chosen = twin.get_submodule(ROUTER)(hidden)
    left = (wanted - experts(hidden, chosen, shares)).float()
    down = weights[one.down].to(torch.float32, copy=True)  # the weights given stay as they are
    for _ in range(SWEEPS):
        for expert in range(count):
            token, place = torch.where(chosen == expert)
            if len(token):
                inner = experts._apply_gate(F.linear(hidden[token], experts.get_parameter(GATE_UP)[expert]))
                inner = inner.float() * shares[token, place, None].float()
                added = added_map(inner, left[token]).float()
                down[expert] += added
                left[token] -= inner @ added.T
    return {**weights, one.down: down.to(weights[one.down].dtype)}


def _seen(model: nn.Module, one: RoutedExperts, source: CalibrationSource) -> tuple[Tensor, Tensor]:
    """What the experts are given [tokens, width], and what they say of it."""
    rows, given, said = Rows(gram=False), [], []

    def note(experts: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        hidden = routed(args, kwargs)[0]
        answers = experts.forward(*args, **kwargs).reshape(hidden.shape)  # a watched forward ends before its own
        rows.calls[one.experts] += 1
        true_rows = rows.true_rows(len(hidden))
        kept = slice(None) if true_rows is None else true_rows.to(hidden.device)
        given.append(hidden[kept])
        said.append(answers[kept])

    handle = one.module.get_submodule(EXPERTS).register_forward_pre_hook(note, with_kwargs=True)
    try:
        run_batches(model, source, rows, [one.experts], None)
    finally:
        handle.remove()
    return torch.cat(given), torch.cat(said)
