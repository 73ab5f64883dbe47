"""tensor_compression with scaled channels: norms and routers take scales in through the journal, and give them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.artifact import load, save
from inference_pio.errors import InvalidSetting
from inference_pio.optimizations.memory import tensor_compression
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.calibration.test_folds import layers_of
from tests.calibration.test_scaling import uneven
from tests.optimizations.memory.test_tensor_compression import CALIBRATED, plan_of
from tests.sweep import Case, rotating, turn_of_this_commit

SCALED: dict[str, Any] = {**CALIBRATED, "calibration": "awq"}
HOW: dict[str, Any] = {"parameters": {"tensor_compression": SCALED}}


class Uneven(Case):
    """A tiny model whose channels are uneven, so that scales are worth something."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        grouped = [path for path in layers_of(self.model) if self._is_in_groups(path)]
        uneven(self.model, grouped, tiny.inputs(name, self.model))
        self.logits, self.before = tiny.logits(self.model, name), fingerprint(self.model)

    def _is_in_groups(self, path: str) -> bool:
        parameters = self.model.get_submodule(path).parameters(recurse=False)
        return all(one.shape[-1] % 32 == 0 for one in parameters if one.dim() > 1)


KEPT = [(name, keep) for keep in ("host", "device") for name in ("llama", "qwen3", "glm4_moe_lite")]


@pytest.mark.parametrize("kept", rotating(KEPT, turn_of_this_commit()))
def test_scales_are_recorded_undone_and_repeated_to_the_bit(kept: tuple[str, str]) -> None:
    name, keep = kept
    case = Uneven(name)
    case.apply("tensor_compression", **HOW, keep_originals=keep)
    receipt = case.manager.get_receipts(case.model)[0]
    found = receipt.decision["rounding"]
    assert found["method"] == "awq"
    assert found["kept"]
    assert found["held_out_divergence"]["kept"] < found["held_out_divergence"]["nearest"]
    assert all(set(one) == {"alpha", "weighed", "loss"} for one in found["scales"].values())
    assert any("calibrated rounding is kept in" in note for note in receipt.notes)
    json.dumps(receipt.to_json())
    first = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    norms = [key for key in first if key.endswith("layernorm.weight")]
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
    plain = case.model.state_dict()
    assert any(not torch.equal(first[key], plain[key]) for key in norms)
    case.apply("tensor_compression", **HOW)
    assert all(torch.equal(first[key], tensor) for key, tensor in case.model.state_dict().items())


def test_scales_help_where_channels_are_uneven() -> None:
    distances = []
    for asked in (SCALED, {"format": "int4", "group_size": 32}):
        case = Uneven("llama")
        case.apply("tensor_compression", parameters={"tensor_compression": asked})
        distances.append(float((tiny.logits(case.model, "llama") - case.logits).norm()))
    assert distances[0] < 0.8 * distances[1]


def test_a_saved_model_needs_no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Uneven("qwen3")
    case.apply("tensor_compression", **HOW)
    save(case.model, tmp_path / "saved")
    monkeypatch.setattr(tensor_compression, "scale_calibrated", lambda *_: 1 / 0)
    again = load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, "qwen3"), tiny.logits(case.model, "qwen3"))


@pytest.mark.parametrize("first_out", [0, 1])
def test_it_comes_off_in_any_order(first_out: int) -> None:
    case, alone = Uneven("qwen3"), Uneven("qwen3")
    pair = ("tensor_compression", "kernel_fusion")
    assert case.apply("kernel_fusion")
    assert case.apply("tensor_compression", **HOW)
    first, second = pair[first_out], pair[1 - first_out]
    case.manager.remove_optimizations(case.model, [first])
    assert alone.apply(second, **(HOW if second == "tensor_compression" else {}))
    assert torch.equal(tiny.logits(case.model, "qwen3"), tiny.logits(alone.model, "qwen3"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("share", rotating(["0.0", "0.3", "0.7", "1.0"], turn_of_this_commit()))
def test_a_failure_midway_leaves_no_trace(share: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, write, writes = Uneven("llama"), Journal._write, [0]
    fatal = 0

    def counted(journal: Journal, entry: Any) -> None:
        writes[0] += 1
        if writes[0] == fatal:
            raise KeyboardInterrupt
        write(journal, entry)

    monkeypatch.setattr(Journal, "_write", counted)
    case.apply("tensor_compression", **HOW)
    total, writes[0] = writes[0], 0
    case.manager.remove_optimizations(case.model)
    writes[0] = 0
    fatal = 1 + round(float(share) * (total - 1))
    with pytest.raises(KeyboardInterrupt):
        case.apply("tensor_compression", **HOW)
    monkeypatch.undo()
    case.check_untouched()


def test_a_plan_says_that_held_out_text_will_decide() -> None:
    assert any("held-out text" in note for note in plan_of(tiny.build("llama"), **SCALED).steps[0].notes)


def test_what_is_not_scaled_is_told_in_the_receipt() -> None:
    case = Uneven("qwen3")
    case.apply("tensor_compression", parameters={"tensor_compression": {**SCALED, "skip": ["*.k_proj"]}})
    receipt = case.manager.get_receipts(case.model)[0]
    assert "channels are not scaled in 3 places: their reader k_proj is kept as it is" in receipt.notes
    left = receipt.decision["rounding"]["not_scaled"]
    assert sum(reason == "their reader k_proj is kept as it is" for reason in left.values()) == 3


def test_a_model_without_such_channels_is_refused_before_anything_starts() -> None:
    case = Case("gpt2")
    with pytest.raises(InvalidSetting, match="no channels that could be scaled"):
        case.manager.apply_optimizations(case.model, ["tensor_compression"], **HOW)
    case.check_untouched()
