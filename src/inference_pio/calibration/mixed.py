"""Formats mixed so that a model fits into so many bytes: chosen by measured sensitivity, judged on held-out text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from inference_pio.anatomy.coverage import coverage_of
from inference_pio.anatomy.roles import roles_of
from inference_pio.calibration.allocation import KEPT, Choice, Choices, alike, allocate, bytes_of, least_bytes
from inference_pio.calibration.candidates import FORMS, form_of, forms_in, weight_bytes
from inference_pio.calibration.forward import Progress
from inference_pio.calibration.held_out import HeldOut, parted
from inference_pio.calibration.input_pass import BUDGET_BYTES
from inference_pio.calibration.sensitivity import with_losses
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import PlanError
from inference_pio.undo.slots import tensors_of


def bounds_of(
    model: nn.Module, choices: Choices, target_bytes: int | None, compression_ratio: float | None
) -> dict[str, int]:  # fmt: skip
    """What the layers may take in all, can take at least, and take now, and what all else takes: in bytes.

    Raises PlanError, with the least that can be reached, for a target below what the coarsest forms take.
    """
    of, least = sum(weight_bytes(model.get_submodule(path)) for path in choices), least_bytes(choices)
    beside = sum({id(tensor): tensor.nbytes for tensor in tensors_of(model)}.values()) - of
    budget = target_bytes - beside if target_bytes is not None else round(of * (1 - (compression_ratio or 0.0)))
    if budget < least:
        asked = f"compression_ratio={compression_ratio}" if target_bytes is None else f"target_bytes={target_bytes}"
        raise PlanError(
            f"{asked} is out of reach: in its coarsest forms this model takes {beside + least} bytes, {beside} of them "
            f"for what is kept. Ask for target_bytes={beside + least} or compression_ratio="
            f"{int(1000 * (1 - least / of)) / 1000} at the most; more targets, or head=true, may leave less."
        )
    return {"budget_bytes": budget, "least_bytes": least, "of_bytes": of, "beside_bytes": beside}


@dataclass
class Mixed:
    """The form of every layer, and how it was come by."""

    chosen: dict[str, Choice]
    name: str
    """"mixed", or the one format that lost less on the held-out text."""
    divergences: dict[str, tuple[int, float]]
    """Bytes and divergence on held-out text of what was compared, by name."""
    sensitivity: dict[str, float]
    """What each layer's coarsest form alone loses."""
    source: dict[str, Any] = field(default_factory=dict)
    settled: tuple[str, ...] = ()
    """What stood already, beside the layers that were chosen for."""

    def to_json(self, model: nn.Module) -> dict[str, Any]:
        """What a decision records beside the forms themselves."""
        roles, by_role = roles_of(model), dict[str, Counter[str]]()
        smaller = [path for path, one in self.chosen.items() if one.format != KEPT]
        for path, one in self.chosen.items():
            by_role.setdefault(roles[path], Counter())[str(one)] += 1
        return {
            "chosen": self.name, "source": self.source, "predicted_bytes": bytes_of(self.chosen),
            "predicted_divergence": sum(one.loss for one in self.chosen.values()),
            "by_role": {role: dict(count) for role, count in by_role.items()},
            "held_out": {name: {"bytes": size, "divergence": lost} for name, (size, lost) in self.divergences.items()},
            "sensitivity": self.sensitivity,
            "coverage": coverage_of(model, {*self.settled, *smaller}).to_json(),
        }  # fmt: skip


def mix_formats(
    model: nn.Module, choices: Choices, budget: int, source: CalibrationSource, progress: Progress | None = None,
    budget_bytes: int = BUDGET_BYTES, settled: Mapping[str, nn.Module] | None = None,
) -> Mixed:  # fmt: skip
    """A form for every layer, at most `budget` bytes in all; nothing of the model is edited.

    What layers lose is measured on a part of the text that is learned from. On the held-out part the choice is set
    beside all layers in int4 and in int8; if the finest of the formats alike that fits the budget loses less there, it
    is taken. `settled` are forms that stand already, of layers without a choice and of what is no layer.
    """
    learned, judged = parted(source)
    measured = parted(learned)[1] if len(learned.batches) > 1 else learned
    losing = with_losses(model, choices, learned, HeldOut(model, measured), progress, budget_bytes)
    ladder = {" in groups of ".join(map(str, filter(None, form))): alike(losing, *form) for form in FORMS}
    names = list(ladder)
    fitting = [name for name in names if bytes_of(ladder[name]) <= budget][-1:]
    compared = {"mixed": allocate(losing, budget), **{name: ladder[name] for name in (names[0], *fitting, names[-1])}}
    held_out = HeldOut(model, judged)
    divergences = {
        name: (bytes_of(one), _divergence(model, one, held_out, settled or {})) for name, one in compared.items()
    }
    best = min(("mixed", *fitting), key=lambda name: divergences[name][1])
    told = {"name": source.name, "tokens": learned.tokens, "held_out_tokens": judged.tokens, "sha256": source.digest}
    losses = {path: one[0].loss for path, one in losing.items()}
    return Mixed(compared[best], best, divergences, losses, told, tuple(settled or ()))


def foretold(choices: Choices, budget: int) -> dict[str, Any]:
    """The forms that a plan shows, as if all weights counted alike: which ones it will be, the text decides."""
    return forms_in(allocate(choices, budget))


def told_of(decision: Mapping[str, Any]) -> list[str]:
    """A mixed decision in words, for plan and receipt."""
    bounds = decision["mixed"]
    within = f"what is compressed may take {bounds['budget_bytes']} bytes of the {bounds['of_bytes']} that it takes now"
    if "mixture" not in decision:
        return [f"{within}; which layer has which format is decided when it is applied, by what each of them loses."]
    found = decision["mixture"]
    roles = (f"{role} {_counted(count)}" for role, count in found["by_role"].items())
    judged = (f"{name} {one['divergence']:.3g} in {one['bytes']} bytes" for name, one in found["held_out"].items())
    return [
        f"{within}; it takes {found['predicted_bytes']}: {', '.join(roles)}.",
        f"divergence on held-out text: {', '.join(judged)}; {found['chosen']} is taken.",
    ]


def _counted(count: Mapping[str, int]) -> str:
    return " and ".join(f"{form.replace(', ', ' in groups of ')} ({number})" for form, number in count.items())


def _divergence(
    model: nn.Module, chosen: Mapping[str, Choice], held_out: HeldOut, settled: Mapping[str, nn.Module]
) -> float:
    """Of the model with all of these forms in it."""
    there = {path: (one, model.get_submodule(path)) for path, one in chosen.items() if one.format != KEPT}
    forms = {
        path: form_of(one.format, one.group, module).nearest(module)
        for path, (one, module) in there.items()
        if path not in settled
    }
    with stood_in(model, {**settled, **forms}):
        return held_out.divergence(model)
