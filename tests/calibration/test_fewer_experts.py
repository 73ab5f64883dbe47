"""The criterion that held-out text prefers is taken; experts that nothing reaches go first; the model is not edited."""

from __future__ import annotations

import pytest
import torch

from inference_pio.anatomy.routed_experts import RoutedExperts, routed_experts
from inference_pio.calibration.expert_scores import CRITERIA, FREQUENCY
from inference_pio.calibration.fewer_experts import REFITTED, fewer_experts
from inference_pio.calibration.held_out import HeldOut, parted
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.test_narrowed import text


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe"])
def test_experts_whose_answers_are_nothing_go_first(name: str) -> None:
    model = tiny.build(name)
    mixtures = [one for one in routed_experts(model) if isinstance(one, RoutedExperts)]
    (one,) = mixtures
    with torch.no_grad():
        one.weights[one.down][[1, 5]] = 0
        if name == "glm4_moe":  # no token is sent there
            one.weights["gate.e_score_correction_bias"][[1, 5]] = -10
    learned, judged = parted(text())
    before = fingerprint(model)
    found = fewer_experts(model, mixtures, {one.path: 6}, learned, HeldOut(model, judged))
    assert before.differences(fingerprint(model)) == []
    assert found.divergences.keys() == {*CRITERIA, REFITTED}
    assert found.divergences[REFITTED if found.refitted else found.criterion] == min(found.divergences.values())
    if found.criterion != FREQUENCY or name == "glm4_moe":
        assert not {1, 5} & set(found.kept[one.path].tolist())
    assert found.to_json()["criterion"] == found.criterion
