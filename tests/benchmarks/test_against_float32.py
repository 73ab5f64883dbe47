"""A profile is held against float32: it runs, and what is wrong is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.against_float32 import MOST, main, table
from torch import nn

ASKED = ["qwen3-4b", "--smoke", "--prompt", "24", "--tokens", "6"]


def test_a_profile_without_loss_is_as_near_as_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "told.json"
    assert main([*ASKED, "--json", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["model"] == "qwen3-4b"
    assert told["machine"]["versions"]["torch"] == torch.__version__
    assert 0 < told["library"]["relative"] < 0.1
    assert told["ratio"] <= MOST
    assert told["first_that_differs"] is None
    assert "tokens equal for 6" in capsys.readouterr().out


@pytest.mark.parametrize("times", [1.1, torch.nan])
def test_what_computes_something_else_is_seen(times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.no_grad()
    def spoil(model: nn.Module, profile: str) -> None:
        weight = model.get_submodule("model.layers.0.mlp.down_proj").get_parameter("weight")
        weight.mul_(times)

    monkeypatch.setattr("inference_pio.optimize", spoil)
    assert main(ASKED) == 1


def test_a_token_that_differs_is_told() -> None:
    each = {"relative": 0.1, "median": 0.1, "worst": 0.1, "same_best": 1.0}
    told = {
        "profile": "lossless", "tokens": 6, "library": each, "ours": each, "ratio": 1.0, "recorded": True,
        "first_that_differs": 3,
    }  # fmt: skip
    assert "tokens differ at 3" in table(told)
