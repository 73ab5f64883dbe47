"""Prompts are filled up to few lengths; each is recorded once, and on a GPU all use the same memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference_pio.decoding.prompt_runners import MOST_TOKENS, PromptRunners, filled_up


def test_lengths_are_few_and_never_much_longer_than_prompts() -> None:
    lengths = [filled_up(tokens) for tokens in range(1, MOST_TOKENS + 1)]
    assert len(set(lengths)) == 16
    for tokens, length in enumerate(lengths, 1):
        assert length is not None
        assert tokens <= length <= MOST_TOKENS
        assert length - tokens < max(64, length / 4)
        assert tokens <= 512 or length <= tokens * 1.25
    assert lengths == sorted(lengths)  # type: ignore[type-var]
    assert filled_up(MOST_TOKENS + 1) is None


def test_what_was_recorded_reads_the_prompt_and_where_it_ends() -> None:
    runners, seen = PromptRunners(), list[tuple[list[list[int]], int]]()

    def forward(tokens: Tensor, last: Tensor) -> None:
        seen.append((tokens[:, :4].tolist(), int(last)))

    runners.record(2, 64, torch.device("cpu"), forward)
    assert runners.has(64, padded=False)
    assert not runners.has(128, padded=False)
    assert not runners.has(64, padded=True)
    assert seen == []
    runners.run(64, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    runners.run(64, torch.tensor([[9], [8]]))
    assert seen == [([[1, 2, 3, 4], [5, 6, 7, 8]], 3), ([[9, 9, 9, 9], [8, 8, 8, 8]], 0)]
    assert runners.nbytes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("inference", [False, True])
def test_gpu_prompts_of_all_lengths_share_memory_and_come_in_any_order(inference: bool) -> None:
    device, runners = torch.device("cuda"), PromptRunners()
    out = torch.zeros(1, dtype=torch.int64, device=device)

    def forward(tokens: Tensor, last: Tensor) -> None:
        wide = tokens.repeat(1, 1 << 14)  # 32 MB at 256 tokens
        out.copy_(wide[:, : tokens.shape[1]].cumsum(1).gather(1, last[None])[0])

    with torch.inference_mode(inference), torch.no_grad():
        for length in (256, 64, 128):
            runners.record(1, length, device, forward)
        held = runners.nbytes
        assert 256 * 8 << 14 <= held < 1.2 * (256 * 8 << 14), "each has memory of its own"
        for tokens, length in ((200, 256), (3, 64), (100, 128), (64, 64), (256, 256)):
            prompt = torch.arange(tokens, device=device)[None]
            runners.run(length, prompt)
            assert out.item() == tokens * (tokens - 1) // 2
    assert runners.nbytes == held


@pytest.mark.gpu
def test_gpu_a_forward_that_asks_the_host_leaves_the_others_whole() -> None:
    device, runners = torch.device("cuda"), PromptRunners()
    out = torch.zeros(1, dtype=torch.int64, device=device)

    def last_token(tokens: Tensor, last: Tensor) -> None:
        out.copy_(tokens[0].index_select(0, last))

    def asks(tokens: Tensor, last: Tensor) -> None:
        out.copy_(tokens[0, int(last)])

    with torch.no_grad():
        runners.record(1, 64, device, last_token)
        for _ in range(2):
            with pytest.raises(torch.AcceleratorError):
                runners.record(1, 128, device, asks)
        runners.record(1, 192, device, last_token)
        for length in (64, 192, 64):
            runners.run(length, torch.tensor([[3, 5]], device=device))
            assert out.item() == 5
        assert not runners.has(128, padded=False)
