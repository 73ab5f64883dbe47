from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.token_loss import naive_token_loss, token_loss


def drawn(rows: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(rows)
    targets = torch.randint(0, vocabulary, (rows,), generator=chance)
    targets[::3] = -100
    return 4 * torch.randn(rows, vocabulary, generator=chance).to(dtype), targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "tokens"), [(2, 1), (7, 3), (64, 64), (65, 8), (33, 100)])
@pytest.mark.parametrize("count", [None, 17, torch.tensor(5)])
def test_pieces_sum_up_to_the_whole(
    rows: int, tokens: int, dtype: torch.dtype, count: int | torch.Tensor | None
) -> None:
    logits, targets = drawn(rows, 41, dtype)
    wanted = naive_token_loss(logits, targets, count=count)
    found = token_loss(logits, targets, tokens, count=count)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_logits_may_be_made_piece_by_piece() -> None:
    hidden, head = torch.randn(19, 8), torch.randn(41, 8)
    targets = torch.arange(19)
    seen: list[int] = []

    def logits_of(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part @ head.T

    found = token_loss(hidden, targets, 8, logits_of=logits_of)
    torch.testing.assert_close(found, naive_token_loss(hidden @ head.T, targets), rtol=1e-5, atol=1e-6)
    assert seen == [8, 8, 3]


def test_another_number_may_mean_ignored_and_none_left_is_no_number() -> None:
    logits, targets = drawn(9, 41)
    targets[targets == -100] = 5
    torch.testing.assert_close(token_loss(logits, targets, 4, ignored=5), naive_token_loss(logits, targets, ignored=5))
    assert token_loss(logits, torch.full((9,), -100), 4).isnan()
