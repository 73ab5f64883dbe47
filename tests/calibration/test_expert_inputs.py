from __future__ import annotations

import torch

from inference_pio.calibration.expert_inputs import routed, rows_by_expert

HIDDEN, CHOSEN = torch.arange(6.0).view(3, 2), torch.tensor([[0, 2], [2, 3], [1, 0]])


def test_arguments_are_found_by_place_or_by_name() -> None:
    for args, kwargs in (((HIDDEN, CHOSEN), {}), ((HIDDEN,), {"top_k_index": CHOSEN})):
        hidden, chosen = routed(args, kwargs)
        assert torch.equal(hidden, HIDDEN)
        assert torch.equal(chosen, CHOSEN)


def test_tokens_go_to_their_experts_and_none_to_the_one_beyond_the_last() -> None:
    found = {expert: rows[:, 0].tolist() for expert, rows in rows_by_expert(HIDDEN, CHOSEN, 3, None)}
    assert found == {0: [0.0, 4.0], 1: [4.0], 2: [0.0, 2.0]}


def test_padding_goes_nowhere() -> None:
    kept = torch.tensor([True, False, False])
    assert dict(rows_by_expert(HIDDEN, CHOSEN, 4, kept)).keys() == {0, 2}
