"""The log tells what the rows were, to a thousandth."""

from __future__ import annotations

import pytest
import torch

from inference_pio.sparsity.audit_log import AuditLog


def test_it_tells_what_numpy_would() -> None:
    coverage = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)).pow(0.2)
    log = AuditLog(3)
    for part in coverage.split(257):
        log.add(part)
    assert log.rows == coverage.numel()
    assert log.mean == pytest.approx(float(coverage.mean()), abs=1e-5)
    for share in (0.01, 0.05, 0.5):
        assert log.quantile(share) == pytest.approx(float(coverage.flatten().quantile(share)), abs=0.0015)
    assert log.worst_head() == pytest.approx(float(coverage.mean(0).min()), abs=1e-5)
    told = log.to_json()
    assert told["audited_rows"] == 12000
    assert set(told) == {"audited_rows", "coverage_mean", "coverage_p05", "coverage_p01", "worst_head_mean"}


def test_an_empty_log_claims_nothing_bad_and_nothing_is_lost_at_the_ends() -> None:
    log = AuditLog(2)
    assert (log.rows, log.quantile(0.05), log.worst_head()) == (0, 1.0, 1.0)
    log.add(torch.tensor([[0.0, 1.0]]))
    assert (log.rows, log.quantile(0.4), log.worst_head()) == (2, 0.0, 0.0)
