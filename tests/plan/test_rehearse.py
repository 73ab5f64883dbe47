"""The rehearsal plays each step on the skeleton, so that later ones see what they will meet."""

from __future__ import annotations

import torch

from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.manager import ModularOptimizationManager
from inference_pio.plan.rehearse import rehearse
from inference_pio.plan.skeleton import skeleton_of, tensor_bytes
from inference_pio.plan.target import Wanted
from tests import tiny
from tests.sweep import TOGETHER, Marker


def test_the_skeleton_that_is_given_is_not_changed() -> None:
    registry = ModularOptimizationManager().registry
    bones = skeleton_of(tiny.build("llama"))
    before = tensor_bytes(bones)
    names = TOGETHER
    target = {name: Wanted(name, dict(registry.get(name).on_small_models)) for name in names}
    steps, left = rehearse(bones, names, target, registry, torch.device("cpu"))
    assert {step.name for step in steps} == set(names)
    assert left == []
    assert tensor_bytes(bones) == before


def test_two_steps_that_share_nothing_commute_and_their_frames_say_so() -> None:
    registry = ModularOptimizationManager().registry
    registry.register(Marker)
    names = ["marker", "tensor_compression"]
    target = {name: Wanted(name) for name in names}
    steps, _ = rehearse(skeleton_of(tiny.build("llama")), names, target, registry, torch.device("cpu"))
    assert not steps[0].frame.commutes_with(steps[1].frame)  # the marker looks at the whole model
    assert isinstance(registry, OptimizationRegistry)
