from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.prompt_arguments import cut, tokens_of, why_not_cut


def arguments(**more: Any) -> dict[str, Any]:
    return {"input_ids": torch.arange(12).view(2, 6), "use_cache": True, **more}


def test_rows_and_tokens_are_those_of_ids_or_embeddings() -> None:
    assert tokens_of(arguments()) == (2, 6)
    assert tokens_of({"input_ids": None, "inputs_embeds": torch.zeros(3, 5, 8)}) == (3, 5)
    assert tokens_of({"input_ids": None}) == (0, 0)


def test_every_token_gets_what_is_its_own() -> None:
    given = arguments(
        position_ids=torch.arange(18).view(3, 1, 6), attention_mask=torch.arange(20).view(2, 10), inputs_embeds=None
    )
    part = cut(given, held=4, begin=2, end=5)
    assert part["input_ids"].tolist() == [[2, 3, 4], [8, 9, 10]]
    assert part["position_ids"].tolist() == [[[2, 3, 4]], [[8, 9, 10]], [[14, 15, 16]]]
    assert part["attention_mask"].tolist() == [list(range(9)), list(range(10, 19))]
    assert (part["inputs_embeds"], part["use_cache"]) == (None, True)


def test_masks_of_queries_and_keys_are_cut_on_both_sides() -> None:
    mask = torch.arange(60).view(1, 1, 6, 10)
    part = cut(arguments(attention_mask={"full_attention": mask, "other": None}), held=4, begin=2, end=5)
    assert torch.equal(part["attention_mask"]["full_attention"], mask[..., 2:5, :9])
    assert part["attention_mask"]["other"] is None


def test_pictures_follow_their_tokens_row_by_row() -> None:
    seen = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0]]).bool()
    states = torch.arange(5.0)[:, None]
    parts = [
        cut(arguments(visual_pos_masks=seen, deepstack_visual_embeds=[states]), 0, begin, begin + 2)
        for begin in (0, 2, 4)
    ]
    assert [part["deepstack_visual_embeds"][0].flatten().tolist() for part in parts] == [[0, 3], [1, 4], [2]]
    assert [int(part["visual_pos_masks"].sum()) for part in parts] == [2, 2, 1]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"attention_mask": torch.ones(2, 10)}, None),
        ({"attention_mask": torch.ones(2, 6)}, "its attention_mask has another length than its tokens"),
        ({"attention_mask": {"a": torch.ones(2, 1, 6, 11)}}, "its attention_mask has another length than its tokens"),
        ({"position_ids": torch.ones(1, 1)}, "position_ids is not told token by token"),
        ({"cu_seq_lens_q": torch.ones(3)}, "cu_seq_lens_q is an argument that is not known here"),
        ({"deepstack_visual_embeds": [torch.ones(1, 1)]}, "deepstack_visual_embeds come without visual_pos_masks"),
        ({"is_causal": True, "logits_to_keep": 1}, None),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_told(more: dict[str, Any], reason: str | None) -> None:
    assert why_not_cut(arguments(**more), held=4) == reason
