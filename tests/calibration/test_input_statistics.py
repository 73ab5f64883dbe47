from __future__ import annotations

import torch

from inference_pio.calibration.input_statistics import InputStatistics, statistics_bytes


def test_sums_over_parts_are_those_over_all_rows() -> None:
    rows = torch.randn(37, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    seen = InputStatistics(6)
    for part in (rows[:5], rows[5:5], rows[5:30], rows[30:]):
        seen.add(part)
    exact = rows.double()
    assert seen.count == 37
    torch.testing.assert_close(seen.mean, exact.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(seen.gram, exact.T @ exact, rtol=1e-6, atol=1e-5)
    assert torch.equal(seen.absmax, rows.abs().amax(0).float())


def test_what_is_kept_comes_back_the_same() -> None:
    for gram in (True, False):
        seen = InputStatistics(3, gram)
        seen.add(torch.eye(3))
        back = InputStatistics.of(seen.tensors(), ("a",))
        assert back.count == 3
        assert back.readers == ("a",)
        assert (back.gram is None) is not gram
        assert all(torch.equal(one, back.tensors()[name]) for name, one in seen.tensors().items())


def test_bytes_are_counted_before_they_are_taken() -> None:
    for gram in (True, False):
        seen = InputStatistics(5, gram)
        assert seen.nbytes == statistics_bytes(5, gram)
        assert seen.nbytes == sum(tensor.nbytes for name, tensor in seen.tensors().items() if name != "count")
