from __future__ import annotations

from pathlib import Path

import torch

from inference_pio.calibration import CalibrationSource, InputStatistics
from inference_pio.calibration.kept import Kept


def source(value: int) -> CalibrationSource:
    return CalibrationSource("s", ({"input_ids": torch.tensor([[value]])},))


def test_what_is_written_is_read_and_nothing_else(tmp_path: Path) -> None:
    seen = InputStatistics(2, readers=("a", "b"))
    seen.add(torch.eye(2))
    kept = Kept(tmp_path / "new", source(1), ["a", "b"], True)
    assert kept.read() is None
    kept.write([seen])
    back = kept.read()
    assert back is not None
    assert (back[0].readers, back[0].count) == (("a", "b"), 2)
    assert torch.equal(back[0].gram, seen.gram)
    others = [(source(2), ["a", "b"], True), (source(1), ["a"], True), (source(1), ["a", "b"], False)]
    assert all(Kept(tmp_path / "new", *other).read() is None for other in others)
