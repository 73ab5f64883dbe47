"""A profile's resource constraints, held against what is planned for a model, and against the model afterwards."""

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
from inference_pio.plan.skeleton import device_of, tensor_bytes
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


def hold_applied(profile: GlobalOptimizationProfile, model: nn.Module) -> None:
    """Raise PlanError where the weights of an optimized model take more than a profile allows; the caller restores.

    A plan cannot know it all: data may leave a member nothing to do, and a quality guard may take one back.
    """
    asked = profile.resource_constraints.max_memory_usage_ratio
    if asked is None:
        return
    device, taken = device_of(model), tensor_bytes(model)
    if taken > asked * total_bytes_of(device):
        left = get_optimization_manager().get_optimization_status(model)["skipped"]
        reasons = "; ".join(f"{one['name']} was left out: {one['reason']}" for one in left)
        told = f" ({reasons})" if reasons else ""
        raise PlanError(
            f"profile {profile.name!r} lets weights take {asked:.0%} of the memory of {device} "
            f"(max_memory_usage_ratio), and they take {taken / 1e6:,.0f} MB{told}: choose a profile that saves more. "
            "The model is as before the call."
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
