"""What each form of each layer would lose: one divergence a layer is measured, its inputs tell those of other forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inference_pio.calibration.allocation import KEPT, Choice, Choices
from inference_pio.calibration.candidates import form_of, is_one_matrix
from inference_pio.calibration.forward import Progress
from inference_pio.calibration.groups import groups_within
from inference_pio.calibration.held_out import HeldOut
from inference_pio.calibration.input_pass import BUDGET_BYTES, collect_inputs, watched_layers
from inference_pio.calibration.input_statistics import InputStatistics
from inference_pio.calibration.rounding import Form, by_reader, part_of
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in

Statistics = Mapping[str, InputStatistics]


def with_losses(
    model: nn.Module, choices: Choices, learned: CalibrationSource, measured: HeldOut,
    progress: Progress | None = None, budget_bytes: int = BUDGET_BYTES,
) -> dict[str, list[Choice]]:  # fmt: skip
    """The same choices with what each would lose if it alone were taken; nothing of the model is edited.

    A layer's coarsest form is measured, by the divergence of the model with that layer alone in it. Its other forms
    lose as much less as they change the layer's products less, with the inputs that it was given: that is told by Gram
    matrices, since a fine form's divergence is less than what bfloat16 makes of any change. Layers that have no choice
    are not measured.
    """
    wanted = [path for path, of_layer in choices.items() if len(of_layer) > 1]
    found = {path: list(of_layer) for path, of_layer in choices.items()}
    groups = list(groups_within(watched_layers(model, wanted), True, budget_bytes)) if wanted else []
    for number, group in enumerate(groups):
        part = part_of(progress, "calibration", number, len(groups))
        paths = [one.path for one in group]
        statistics = by_reader(collect_inputs(model, learned, paths, budget_bytes=budget_bytes, progress=part))
        for one in group:
            found[one.path] = _shares(one.path, one.module, choices[one.path], statistics)
    for number, path in enumerate(wanted):
        found[path] = _scaled(model, path, found[path], measured)
        if progress:
            progress("sensitivity", (number + 1) / len(wanted))
    return found


def _scaled(model: nn.Module, path: str, shares: Sequence[Choice], measured: HeldOut) -> list[Choice]:
    """Relative errors times what the coarsest form was measured to lose over its own."""
    module, coarsest = model.get_submodule(path), shares[0]
    with stood_in(model, {path: form_of(coarsest.format, coarsest.group, module).nearest(module)}):
        divergence = max(measured.divergence(model), 0.0)
    return [one.losing(divergence * one.loss / coarsest.loss if coarsest.loss else 0.0) for one in shares]


def _shares(path: str, module: nn.Module, choices: Sequence[Choice], statistics: Statistics) -> list[Choice]:
    changes = [0.0 if one.format == KEPT else _change(path, module, one, statistics) for one in choices]
    return [one.losing(change) for one, change in zip(choices, changes, strict=True)]


def _change(path: str, module: nn.Module, choice: Choice, statistics: Statistics) -> float:
    """The squared change of a layer's products by rounding, over their squares; of experts, that of both matrices."""
    form = form_of(choice.format, choice.group, module)
    if is_one_matrix(module):
        weight: Any = module.weight
        return _relative([(weight.t() if isinstance(module, Conv1D) else weight, statistics[path])], form)
    total = 0.0
    for name, stack in module.named_parameters(recurse=False):
        seen = (statistics.get(f"{path}.{name}[{expert}]") for expert in range(stack.shape[0]))
        total += _relative(zip(stack, seen, strict=True), form)
    return total


def _relative(matrices: Iterable[tuple[Tensor, InputStatistics | None]], form: Form) -> float:
    """Experts that no token reached say nothing."""
    kind: Any = form.kind
    changed = whole = 0.0
    for matrix, seen in matrices:
        if seen is None or seen.gram is None:
            continue
        matrix = matrix.detach()
        full, gram = matrix.float(), seen.gram.to(matrix.device, torch.float32)
        change = kind.dequantized(*kind.quantize(matrix, form.group), torch.float32) - full
        changed += float(((change @ gram) * change).sum())
        whole += float(((full @ gram) * full).sum())
    return max(changed, 0.0) / whole if whole > 0 else 0.0
