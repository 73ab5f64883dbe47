"""Prefill: what is kept covers what it promises, also where the estimate misleads; audits tell the truth."""

from __future__ import annotations

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.attention_mass import attention_mass
from inference_pio.kernels.block_choice import fixed_blocks, seen_blocks
from inference_pio.sparsity.audited_prefill import AuditedPrefill, Choice, PrefillSettings
from tests.sweep import marks_of

TOKENS, WIDTH = 2048, 32
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def _peaked(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Heads that look at whole topics: tokens of a block share a direction, and look for those that share theirs."""
    chance = torch.Generator().manual_seed(seed)
    topics = torch.randn(8, WIDTH, generator=chance)
    of_block = torch.randint(0, 8, (TOKENS // 64,), generator=chance).repeat_interleave(64)
    noise = torch.randn(2, TOKENS, WIDTH, generator=chance)
    key = topics[of_block] + 0.3 * noise[0]
    query = 1.5 * topics[of_block] + 0.3 * noise[1]
    return query[None, None].expand(1, 2, -1, -1).contiguous(), key[None, None]


def _needles(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every query looks at one key anywhere before it: the mean of a block says nothing of that."""
    chance = torch.Generator().manual_seed(seed)
    key = torch.randn(1, 1, TOKENS, WIDTH, generator=chance)
    looked_at = (torch.rand(TOKENS, generator=chance) * torch.arange(1, TOKENS + 1)).long()
    query = 4.0 * key[:, :, looked_at]
    return query.expand(1, 2, -1, -1).contiguous(), key


def _coverage(choice: Choice, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    mass = attention_mass(query, key, causal=True, block=64)
    mass = mass.unflatten(2, (-1, choice.query_block // 64)).mean(3)
    return (mass * choice.kept).sum(-1)


@pytest.mark.parametrize("scorer", ["mean", "antidiagonal"])
@pytest.mark.parametrize("query_block", [64, 128])
def test_what_is_kept_covers_what_it_promises_and_is_sparse(scorer, query_block) -> None:
    prefill = AuditedPrefill(2, PrefillSettings(scorer=scorer, query_block=query_block), torch.device("cpu"))
    found = []
    for seed in range(4):
        query, key = _peaked(seed)
        choice = prefill.choose(query, key)
        found.append(_coverage(choice, query, key))
        kept, visible = choice.sizes()
        assert kept < 0.5 * visible
    covered = torch.cat(found).flatten()
    assert float(covered.mean()) >= 0.98
    assert float(covered.quantile(0.05)) >= 0.93  # a few dozen rows tell a twentieth no better
    told = prefill.log.to_json()
    assert told["coverage_mean"] == pytest.approx(float(covered.mean()), abs=0.01)
    assert told["coverage_p05"] == pytest.approx(float(covered.quantile(0.05)), abs=0.03)


def test_heads_whose_estimate_misleads_become_dense() -> None:
    prefill = AuditedPrefill(2, PrefillSettings(), torch.device("cpu"))
    query, key = _needles(0)
    choice = prefill.choose(query, key)
    assert float(_coverage(choice, query, key).mean()) >= 0.98
    kept, visible = choice.sizes()
    assert kept >= 0.95 * visible


def test_heads_change_with_what_they_read() -> None:
    prefill = AuditedPrefill(2, PrefillSettings(), torch.device("cpu"))
    prefill.choose(*_peaked(0))
    for seed in range(4):
        choice = prefill.choose(*_needles(seed))
    assert float(_coverage(choice, *_needles(3)).mean()) >= 0.97


def test_blocks_that_keep_all_they_see_teach_nothing() -> None:
    """The first piece of a text has no block that could be left out: what it finds would let the next drop anything."""
    prefill = AuditedPrefill(2, PrefillSettings(), torch.device("cpu"))
    query, key = _needles(0)
    for end in (256, 512, 768):
        choice = prefill.choose(query[:, :, end - 256 : end], key[:, :, :end])
        assert float(_coverage(choice, query[:, :, end - 256 : end], key[:, :, :end]).min()) >= 0.95
        assert prefill.log.rows == (0 if end < 768 else 2)  # the first row that tells teaches, the next is measured


@pytest.mark.parametrize("queries", [128, 256, 700, 2048])
@pytest.mark.parametrize("query_block", [64, 128])
@pytest.mark.parametrize("padding", [0, 333])
def test_audited_blocks_are_those_with_a_choice(queries, query_block, padding) -> None:
    prefill = AuditedPrefill(2, PrefillSettings(query_block=query_block), torch.device("cpu"))
    query, key = (torch.zeros(1, 1, length, 8) for length in (queries, 2048))
    starts = torch.tensor([padding])
    sizes = (queries, 2048, query_block, 64)
    free = (seen_blocks(*sizes, starts=starts) & ~fixed_blocks(*sizes, ending=128, starts=starts)).any(-1).flatten()
    blind = prefill._blind(query, key, padding)
    assert not bool(free[:blind].any()) or padding % 64
    assert bool(free[blind : prefill._choosing(queries)].all()) or queries <= 128


def test_the_same_seed_makes_the_same_choice() -> None:
    first, second = (AuditedPrefill(2, PrefillSettings(), torch.device("cpu")) for _ in range(2))
    assert torch.equal(first.choose(*_peaked(0)).kept, second.choose(*_peaked(0)).kept)


def test_history_odd_lengths_and_padding() -> None:
    query, key = _peaked(1)
    prefill = AuditedPrefill(2, PrefillSettings(), torch.device("cpu"))
    starts = torch.tensor([333], dtype=torch.int32)
    choice = prefill.choose(query[:, :, -700:], key, starts=starts)
    assert choice.kept.shape == (1, 2, 6, 32)
    assert not bool(choice.kept[..., :5].any())
    assert bool(choice.kept[:, :, :, 5].all())
    short = prefill.choose(query[:, :, :130], key[:, :, :130])
    assert short.kept.shape == (1, 2, 2, 3)


def _wide(pair, tokens: int, starts: torch.Tensor | None = None):
    """As the kernels take them: 64 wide (the scores as they were), bfloat16, and values."""
    query, key = (torch.cat((one, torch.zeros_like(one)), -1)[:, :, :tokens] for one in pair)
    value = torch.randn(key.shape, generator=torch.Generator().manual_seed(9))
    if starts is not None:
        query, key, value = (one.expand(len(starts), -1, -1, -1).contiguous() for one in (query, key, value))
    return (2**0.5 * query).bfloat16(), key.bfloat16(), value.bfloat16()


def _error(out, query, key, value, starts=None):
    seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])[None, None]
    if starts is not None:
        seen = seen & (torch.arange(key.shape[2]) >= starts[:, None])[:, None, None]
    exact = naive_attention(query, key, value, seen).nan_to_num(0.0)
    return float((out.float() - exact).norm() / exact.norm())


def check_kernels(seed: int, tokens: int, queries: int, padding: tuple[int, ...] | None) -> None:
    """Both ways choose as many blocks and cover as much; what they give is the attention but for what was left out."""
    starts = None if padding is None else torch.tensor(padding)
    found = {}
    for name in ("triton", "gathered"):
        prefill = AuditedPrefill(2, PrefillSettings(dense_above=1.0), torch.device("cpu"))
        for offset in range(2):
            query, key, value = _wide(_peaked(seed + offset), tokens, starts)
            if name == "gathered":
                query, key, value = query.float(), key.float(), value.float()
            attended = prefill.attend(query[:, :, -queries:], key, value, starts=starts)
            assert attended.backend.name == name
            assert _error(attended.out, query[:, :, -queries:], key, value, starts) < 0.2
        found[name] = (*attended.sizes(), prefill.log.to_json()["coverage_mean"], prefill.log.rows)
    kept, visible, covered, rows = found["triton"]
    expected = found["gathered"]
    assert visible == expected[1]
    assert kept < 0.9 * visible
    assert kept == pytest.approx(expected[0], rel=0.03)
    assert covered == pytest.approx(expected[2], abs=0.005 if padding is None else 0.02)  # other rows are drawn there
    assert rows == expected[3] or padding is not None


def check_misled() -> None:
    """The density gate is on the device: heads that would keep too much read all, in the lists made anew."""
    prefill = AuditedPrefill(2, PrefillSettings(), torch.device("cpu"))
    query, key, value = _wide(_needles(0), 1024)
    attended = prefill.attend(query, key, value)
    kept, visible = attended.sizes()
    assert kept == visible
    assert _error(attended.out, query, key, value) < 0.01
    pieces = AuditedPrefill(2, PrefillSettings(), torch.device("cpu"))
    first = pieces.attend(*(one[:, :, :256] for one in (query, key, value)))
    assert (*first.sizes(), pieces.calls) == (12, 12, 0)
    loose = AuditedPrefill(2, PrefillSettings(dense_above=0.0), torch.device("cpu"))
    assert loose.attend(*_wide(_peaked(0), 1024)).sizes()[0] == visible


@needs_triton
@pytest.mark.parametrize(
    ("seed", "tokens", "queries", "padding"),
    [
        pytest.param(*case, marks=marks_of(place, of=3))
        for place, case in enumerate(((0, 1024, 1024, None), (2, 1000, 700, None), (4, 1024, 1024, (0, 300))))
    ],
)
def test_kernels_choose_and_attend_as_torch_does(seed, tokens, queries, padding, interpreted) -> None:
    interpreted(check_kernels, seed, tokens, queries, padding)


@needs_triton
def test_heads_whose_estimate_misleads_become_dense_in_the_kernels_too(interpreted) -> None:
    interpreted(check_misled)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_gpu_nothing_waits_for_the_device() -> None:
    prefill = AuditedPrefill(2, PrefillSettings(), torch.device("cuda"))
    given = [one.cuda() for one in _wide(_peaked(0), 2048)]
    starts = torch.tensor([100], dtype=torch.int32, device="cuda")
    prefill.attend(*given)  # compiles
    prefill.attend(*given, starts=starts)
    try:
        torch.cuda.set_sync_debug_mode("error")
        attended = prefill.attend(*given)
        prefill.attend(*given, starts=starts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert attended.backend.name == "triton"
    assert _error(attended.out.cpu(), *(one.cpu() for one in given)) < 0.2
