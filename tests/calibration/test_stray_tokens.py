"""Some tokens of a text are others: as many as asked, any that the model knows, none that has a name."""

from __future__ import annotations

import pytest
import torch

from inference_pio.anatomy.vocabulary import named_tokens, readable_tokens
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stray_tokens import with_stray_tokens
from tests import tiny
from tests.surgery.help import operate


def text(tokens: torch.Tensor) -> CalibrationSource:
    return CalibrationSource("tokens", tuple({"input_ids": row[None], "more": 1} for row in tokens))


def ids(source: CalibrationSource) -> torch.Tensor:
    return torch.cat([batch["input_ids"] for batch in source.batches])


@pytest.mark.parametrize("share", [0.125, 0.5])
def test_as_many_are_others_as_asked_and_any_may_be_chosen(share: float) -> None:
    model = tiny.build("qwen3")
    before = text(torch.full((32, 512), 7))
    found = ids(with_stray_tokens(model, before, share))
    others = found[found != 7]
    assert found.dtype == torch.int64
    assert found.shape == (32, 512)
    assert abs(others.numel() / found.numel() - share) < 0.02
    size = model.config.vocab_size
    assert set(others.tolist()) == set(range(size)) - {7} - named_tokens(model)
    counts = torch.bincount(others, minlength=size).double()
    assert counts.max() < 3 * counts.sum() / size
    assert ids(before).eq(7).all()
    assert torch.equal(ids(with_stray_tokens(model, before, share)), found)


def test_tokens_with_names_stay_and_never_come() -> None:
    model = tiny.build("qwen3_vl")
    named = sorted(named_tokens(model))
    assert model.config.image_token_id in named
    before = torch.tensor(named).repeat(8, 40)
    assert torch.equal(ids(with_stray_tokens(model, text(before), 0.5)), before)
    plain = torch.full((8, 512), next(one for one in range(64) if one not in named))
    assert not torch.isin(ids(with_stray_tokens(model, text(plain), 0.5)), torch.tensor(named)).any()


def test_ids_that_are_no_rows_of_the_embedding_stay_where_they_are() -> None:
    model = tiny.build("qwen3")
    size = model.config.vocab_size
    pictures = torch.tensor([-200, size, size + 7, -1]).repeat(8, 64)
    assert torch.equal(ids(with_stray_tokens(model, text(pictures), 0.5)), pictures)


def test_inputs_without_tokens_stay_as_they_are_and_other_inputs_too() -> None:
    given = CalibrationSource("numbers", ({"input": torch.ones(2, 3)},))
    assert with_stray_tokens(torch.nn.Linear(3, 3), given, 0.5) is given
    model = tiny.build("qwen3")
    (batch,) = with_stray_tokens(model, CalibrationSource("x", ({"inputs_embeds": torch.ones(1, 2, 3)},)), 0.5).batches
    assert batch["inputs_embeds"].equal(torch.ones(1, 2, 3))
    assert all(batch["more"] == 1 for batch in with_stray_tokens(model, text(torch.ones(2, 4).long()), 0.5).batches)


def test_of_a_trimmed_vocabulary_only_what_is_left_comes() -> None:
    model = tiny.build("qwen3")
    operate(model, "vocabulary", keep_ids=list(range(40)))
    found = readable_tokens(model)
    assert found is not None
    assert set(range(40)) <= set(found.tolist()) <= set(range(40)) | named_tokens(tiny.build("qwen3"))
    strayed = ids(with_stray_tokens(model, text(torch.full((8, 512), 7)), 0.5))
    assert torch.isin(strayed, found).all()
    with torch.no_grad():
        assert model(input_ids=strayed).logits.shape[0] == 8
