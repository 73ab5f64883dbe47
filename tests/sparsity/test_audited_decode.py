"""Decode: the first steps teach, what is kept later covers what it promises, a budget is kept, audits are spread."""

from __future__ import annotations

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.page_summary import PageSummary, naive_page_summary
from inference_pio.kernels.row_mass import row_mass
from inference_pio.sparsity.audited_decode import FIRST, AuditedDecode, DecodeSettings

WIDTH = 32
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


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


@pytest.mark.parametrize("padding", [None, 70])
def test_layers_that_are_joined_learn_as_they_do_by_themselves(padding: int | None) -> None:
    layers, tokens, settings = 3, 700, DecodeSettings(scorer="both")
    starts = None if padding is None else torch.tensor([padding, 0])
    joined, alone = ([AuditedDecode(2, 1, settings, torch.device("cpu")) for _ in range(layers)] for _ in range(2))
    joined[1].shares.fill_(0.5)
    whole = joined[0].joined(joined[1:])
    assert joined[0].joined(joined[1:]) is whole
    assert whole.shares.tolist() == [2.0, 0.5, 2.0]
    drawn = [[_sequence(tokens, seed=2 * layer + row) for row in range(2)] for layer in range(layers)]
    keys = [torch.cat([key for key, _ in rows]) for rows in drawn]
    found = [naive_page_summary(key.transpose(1, 2), tokens, starts) for key in keys]
    stacked = PageSummary(
        *(torch.cat([getattr(one, name) for one in found]) for name in ("minimum", "maximum", "mean"))
    )
    for step in range(FIRST + 3):
        queries = torch.stack([torch.stack([asked[step].expand(2, -1) for _, asked in rows]) for rows in drawn])
        for layer, part in enumerate(alone):
            ranked = part._ranked(queries[layer], found[layer], tokens, None, starts)
            part._audit(queries[layer][:, :, None], keys[layer], ranked, None, starts)
        whole.audit_layers(queries, keys, stacked, starts=starts)
    assert whole.is_learning is False
    for mine, theirs in zip(joined, alone, strict=True):
        torch.testing.assert_close(mine.shares, theirs.shares)
        assert torch.equal(mine.log.counts, theirs.log.counts)
        torch.testing.assert_close(mine.log.sums, theirs.log.sums)
    assert torch.equal(whole.shares, torch.cat([part.shares for part in joined]))
    assert float(whole.shares.min()) < 1


def check_kernels(scorer: str, budget: int | None, padding: int | None, device: str = "cpu") -> None:
    """The same pages, step by step, by both ways; and the attention over them."""
    tokens, steps, settings = 1500, FIRST + 5, DecodeSettings(scorer=scorer, budget=budget)
    key, queries = _sequence(tokens + steps)
    key = torch.cat((key, torch.zeros_like(key)), -1).bfloat16().to(device)
    value = torch.randn(key.shape, generator=torch.Generator().manual_seed(1)).to(key)
    queries = (2**0.5 * torch.cat((queries, torch.zeros_like(queries)), -1)).bfloat16().to(device)
    starts = None if padding is None else torch.tensor([padding], device=device)
    ours, plain = (AuditedDecode(2, 1, settings, torch.device(device)) for _ in range(2))
    for step in range(steps):
        length = tokens + step
        query = queries[step].expand(1, 2, 1, -1)
        seen, values = key[:, :, :length], value[:, :, :length]
        found = naive_page_summary(seen.transpose(1, 2), length, starts)
        summary = PageSummary(found.minimum.bfloat16(), found.maximum.bfloat16(), found.mean)
        attended = ours.attend(query, seen, values, summary, starts=starts)
        expected = plain.attend(query.float(), seen.float(), values.float(), summary, starts=starts)
        assert attended.backend.name == "triton"
        if expected is None:  # the other way leaves these steps to the dense function
            assert step < FIRST
            assert attended.sizes()[0] == attended.sizes()[1]
        else:
            assert expected.backend.name == "gathered"
            assert attended.sizes()[1] == expected.sizes()[1]
            assert attended.sizes()[0] == pytest.approx(expected.sizes()[0], abs=1)
        if expected is not None and attended.sizes() == expected.sizes():
            torch.testing.assert_close(attended.out.float(), expected.out, rtol=3e-2, atol=3e-2)
        places = torch.arange(length, device=device)[None, None, None]
        exact = naive_attention(query, seen, values, places >= (padding or 0))
        assert float((attended.out.float() - exact).norm() / exact.norm()) < (0.02 if step < FIRST else 0.5)
    assert attended.sizes()[0] < attended.sizes()[1]
    if budget is not None:
        assert attended.sizes()[0] <= budget // 64
    torch.testing.assert_close(ours.shares, plain.shares)


@needs_triton
@pytest.mark.parametrize(
    ("scorer", "budget", "padding"), [("mean", None, None), ("both", None, 70), ("bounds", 512, None)]
)
def test_kernels_choose_and_attend_as_torch_does(scorer, budget, padding, interpreted) -> None:
    interpreted(check_kernels, scorer, budget, padding)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_gpu_nothing_waits_for_the_device_and_a_graph_follows_the_length() -> None:
    check_kernels("mean", None, None, "cuda")
    decode = AuditedDecode(2, 1, DecodeSettings(), torch.device("cuda"))
    decode.shares.fill_(0.9)
    keys = torch.randn(1, 4096, 1, 64, device="cuda", dtype=torch.bfloat16)
    found = naive_page_summary(keys, 4096)
    summary = PageSummary(found.minimum.bfloat16(), found.maximum.bfloat16(), found.mean)
    query, lengths = keys[:, 7].expand(1, 2, 64), torch.tensor([4096], dtype=torch.int32, device="cuda")
    decode.list_pages(query, summary, lengths)
    try:
        torch.cuda.set_sync_debug_mode("error")
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            pages = decode.list_pages(query, summary, lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for length in (64, 1000, 4096):
        lengths.fill_(length)
        graph.replay()
        listed = pages.indices[0, 0, : int(pages.counts[0, 0])]
        assert int(listed.max()) == (length - 1) // 64
        assert int(listed.min()) == 0
