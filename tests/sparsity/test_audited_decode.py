"""Decode: the first steps teach, what is kept later covers what it promises, a budget is kept, audits are spread."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.page_summary import naive_page_summary
from inference_pio.kernels.row_mass import row_mass
from inference_pio.sparsity.audited_decode import FIRST, AuditedDecode, DecodeSettings

WIDTH = 32


def _sequence(tokens: int, seed: int = 0):
    chance = torch.Generator().manual_seed(seed)
    topics = torch.randn(8, WIDTH, generator=chance)
    of_page = torch.randint(0, 8, (-(-tokens // 64),), generator=chance).repeat_interleave(64)[:tokens]
    key = topics[of_page] + 0.3 * torch.randn(tokens, WIDTH, generator=chance)
    queries = 1.5 * topics[torch.randint(0, 8, (200,), generator=chance)]
    return key[None, None], queries


def _steps(decode: AuditedDecode, tokens: int, steps: int):
    """Pages chosen at each step, with what they cover."""
    key, queries = _sequence(tokens + steps)
    for step in range(steps):
        seen = key[:, :, : tokens + step]
        query = queries[step].expand(1, 2, 1, -1)
        pages = decode.choose(query, seen, naive_page_summary(seen.transpose(1, 2), tokens + step))
        mass = row_mass(query, torch.tensor([tokens + step - 1]), seen, block=64).mean(1)[:, :, :]
        yield pages, None if pages is None else float((mass[:, 0] * pages[:, 0]).sum())


def test_the_first_steps_are_dense_and_the_others_cover_what_they_promise() -> None:
    decode = AuditedDecode(2, 1, DecodeSettings(), torch.device("cpu"))
    taken = list(_steps(decode, 2000, 80))
    assert all(pages is None for pages, _ in taken[:FIRST])
    later = [(pages, found) for pages, found in taken[FIRST:] if pages is not None]
    assert len(later) > 60
    assert sum(found for _, found in later) / len(later) >= 0.97
    assert sum(float(pages.float().mean()) for pages, _ in later) / len(later) < 0.5
    assert decode.log.rows == FIRST - 1 + int(80 / 64)


def test_a_budget_is_kept() -> None:
    decode = AuditedDecode(2, 1, DecodeSettings(budget=512), torch.device("cpu"))
    taken = [pages for pages, _ in _steps(decode, 2000, 30) if pages is not None]
    assert taken
    assert max(int(pages.sum()) for pages in taken) <= 512 // 64


def test_audits_are_as_frequent_as_asked() -> None:
    decode = AuditedDecode(2, 1, DecodeSettings(audit_rate=0.25), torch.device("cpu"))
    list(_steps(decode, 640, 48))
    assert decode.log.rows == FIRST - 1 + (48 - FIRST) // 4
    decode.begin()
    assert next(iter(_steps(decode, 640, 1)))[0] is None


@pytest.mark.parametrize("scorer", ["mean", "bounds", "both"])
def test_the_first_and_the_last_pages_are_always_read(scorer) -> None:
    decode = AuditedDecode(2, 1, DecodeSettings(scorer=scorer), torch.device("cpu"))
    key, queries = _sequence(1000)
    starts = torch.tensor([130])
    summary = naive_page_summary(key.transpose(1, 2), 1000, starts)
    for step in range(FIRST + 4):
        pages = decode.choose(queries[step].expand(1, 2, 1, -1), key, summary, starts=starts)
    assert pages is not None
    assert pages[0, 0, :2].tolist() == [False, False]
    assert bool(pages[0, 0, 2])
    assert pages[0, 0, -2:].tolist() == [True, True]
