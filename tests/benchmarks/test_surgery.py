"""The command that tells what exact edits gain runs, and shows both edits in both dtypes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import surgery


def test_it_tells_both_edits_in_both_dtypes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(surgery, "CONTEXT", 16)
    monkeypatch.setattr(surgery, "PATCHES", 4)
    with torch.no_grad():
        assert surgery.main(["--smoke"]) == 0
    told = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(":")[0] for line in told] == [
        f"{name}, {kind}" for name in ("patch_linear", "latent_decode") for kind in ("float32", "bfloat16")
    ]
    assert all(word in line for line in told for word in ("median", "fastest", "one thread"))
