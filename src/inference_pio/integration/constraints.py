"""A profile's resource constraints, held against a model and what is planned for it, before anything is touched."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import psutil
import torch
from torch import nn

from inference_pio.configuration import GlobalOptimizationProfile
from inference_pio.errors import PlanError
from inference_pio.manager import get_optimization_manager
from inference_pio.plan.make import check_model
from inference_pio.plan.skeleton import device_of
from inference_pio.plan.target import Wanted

logger = logging.getLogger("inference_pio")


def hold_constraints(profile: GlobalOptimizationProfile, model: nn.Module, target: Sequence[Wanted]) -> None:
    """Raise PlanError where a profile asks for more than this model's device has; see `ResourceConstraints`."""
    check_model(model)
    asked, device = profile.resource_constraints, device_of(model)
    if asked.min_compute_capability is not None and device.type == "cuda":
        _hold_capability(profile.name, asked.min_compute_capability, device)
    if asked.max_memory_usage_ratio is not None:
        planned = get_optimization_manager().plan(model, target, profile=profile.name)
        _hold_memory(profile.name, asked.max_memory_usage_ratio, planned.weight_bytes_after, device)
    if asked.prefer_gpu_over_cpu and device.type == "cpu" and torch.cuda.is_available():
        logger.warning(
            "profile %r prefers a GPU, and this model is on the CPU of a machine that has one.", profile.name
        )


def _hold_capability(name: str, wanted: float, device: torch.device) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < divmod(round(wanted * 10), 10):
        raise PlanError(
            f"profile {name!r} asks for compute capability {wanted} (min_compute_capability), and {device} has "
            f"{major}.{minor}: choose another profile. Nothing was touched."
        )


def _hold_memory(name: str, wanted: float, weight_bytes: int, device: torch.device) -> None:
    total = total_bytes_of(device)
    if weight_bytes > wanted * total:
        raise PlanError(
            f"profile {name!r} lets weights take {wanted:.0%} of the memory of {device} (max_memory_usage_ratio), "
            f"which is {wanted * total / 1e6:,.0f} MB, and they would take {weight_bytes / 1e6:,.0f} MB: choose a "
            "profile that saves more. Nothing was touched."
        )


def total_bytes_of(device: torch.device) -> int:
    """All memory of a device; of the machine, for any that is not a GPU of its own."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
