"""The proof that spikes add up to what their counts multiply to: a model and its twin on one input, bit by bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.spiking.module import SpikingModule
from inference_pio.spiking.twin import QuantizedTwin

STEPS = 4
"""Tokens at the end that are decoded one by one, from a cache."""
HALF = (torch.float16, torch.bfloat16)


def why_no_proof(model: nn.Module) -> str | None:
    """Why equality of the bits would prove little here, or None."""
    kinds = {tensor.dtype for tensor in model.parameters()} & set(HALF)
    if not kinds:
        return None
    name = str(min(kinds, key=str)).removeprefix("torch.")
    return f"the model is in {name}, whose rounding hides differences: model.float() first, or leave prove out"


def prove_equal(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Run a model and its twin over a batch: as a whole and, where it holds tokens, the last ones from a cache.

    What was compared, as JSON. Raises InvalidSetting for a model in half precision, InvalidModel where a bit differs.
    """
    if reason := why_no_proof(model):
        raise InvalidSetting(f"spikes cannot be proven equal to their counts: {reason}.")
    with torch.no_grad():
        ours, twins = (_outputs(run, model, batch) for run in (model, QuantizedTwin(model)))
    for name, (spiking, counted) in {name: (ours[name], twins[name]) for name in ours}.items():
        if not _same_bits(spiking, counted):
            gap = float((spiking.double() - counted.double()).abs().max())
            raise InvalidModel(f"spikes and counts differ by up to {gap:.3g} in {name}: this is an error of ours.")
    codes = [module.code for module in model.modules() if isinstance(module, SpikingModule)]
    numbers = {name: spiking.numel() for name, spiking in ours.items()}
    return {"equal": True, "numbers": numbers, "steps": codes[0].steps, "coding": codes[0].coding}


def _outputs(run: Callable[..., Any], model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    tokens = batch.get("input_ids")
    if not isinstance(tokens, Tensor):
        return {"outputs": run(**batch)}
    if tokens.shape[1] <= STEPS or "past_key_values" not in inspect.signature(type(model).forward).parameters:
        return {"logits": run(**batch).logits}
    prompt = run(input_ids=tokens[:, :-STEPS], use_cache=True)
    if getattr(prompt, "past_key_values", None) is None:  # its state is not handed out
        return {"logits": run(**batch).logits}
    steps = [
        run(input_ids=token, past_key_values=prompt.past_key_values, use_cache=True).logits
        for token in torch.split(tokens[:, -STEPS:], 1, 1)
    ]
    return {"logits": prompt.logits, "logits of cached steps": torch.cat(steps, 1)}


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) and bool((one.signbit() == other.signbit()).all())
