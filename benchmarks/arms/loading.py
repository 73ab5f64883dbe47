"""Ways to bring a checkpoint into a device's memory: the library's own, and `load_pretrained` in several forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import inference_pio


@dataclass(frozen=True)
class LoadArm:
    """`load` opens a folder on a device; `parameters` are what the same model must have been given to say the same."""

    label: str
    load: Callable[[Path, torch.device], nn.Module]
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _library(folder: Path, device: torch.device) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device})
    return model


def _ours(parameters: Mapping[str, Mapping[str, Any]]) -> Callable[[Path, torch.device], nn.Module]:
    def load(folder: Path, device: torch.device) -> nn.Module:
        model: nn.Module = inference_pio.load_pretrained(
            folder, parameters=parameters, dtype=torch.bfloat16, device=device, progress=False
        )
        return model

    return load


def _within(folder: Path, device: torch.device) -> nn.Module:
    budget = {"gpu_budget": "30%"} if device.type == "cuda" else {"host_budget": "80%"}
    model: nn.Module = inference_pio.load_pretrained(
        folder, dtype=torch.bfloat16, device=device, progress=False, **budget
    )
    return model


INT8 = {"tensor_compression": {"format": "int8"}}

ARMS: dict[str, LoadArm] = {
    "from-pretrained": LoadArm("from_pretrained, device_map", _library),
    "pio-load": LoadArm("inference-pio load_pretrained", _ours({})),
    "pio-load-int8": LoadArm("inference-pio load_pretrained, int8 as it comes", _ours(INT8), INT8),
    "pio-load-budget": LoadArm("inference-pio load_pretrained within a budget", _within),
}
