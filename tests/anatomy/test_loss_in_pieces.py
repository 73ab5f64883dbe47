from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from inference_pio.anatomy.loss_in_pieces import loss_of, make_losses_in_pieces, next_tokens, why_no_loss
from inference_pio.measure.allocations import peak_allocated
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction
from tests import tiny
from tests.cache.walks import prompt


def in_pieces(model: Any, tokens: int) -> Journal:
    journal = Journal(model)
    with journal.step("loss"):
        make_losses_in_pieces(journal, model, tokens)
    return journal


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@torch.no_grad()
def test_the_loss_is_the_librarys_and_the_logits_stay(name: str) -> None:
    model: Any = tiny.build(name)
    given = prompt(2, 11, (0, 3))
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    before = fingerprint(model)
    wanted = model(**given, labels=labels)
    journal = in_pieces(model, 4)
    found = model(**given, labels=labels)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.logits, wanted.logits)
    assert model(**given).loss is None
    scaled = model(**given, labels=labels, num_items_in_batch=torch.tensor(7)).loss
    torch.testing.assert_close(scaled, wanted.loss * (labels[:, 1:] != -100).sum() / 7, rtol=1e-5, atol=1e-6)
    assert loss_of(model).pieces.to_json() == {"calls": 2, "pieces": 12, "left_whole": {}}  # type: ignore[union-attr]
    transaction = Transaction(journal)
    transaction.undo(list(journal.frames))
    transaction.commit()
    assert before.differences(fingerprint(model)) == []


def test_what_is_learned_from_is_the_librarys_own() -> None:
    model: Any = tiny.build("llama")
    given = prompt(1, 11)
    wanted = model(**given, labels=given["input_ids"]).loss
    in_pieces(model, 4)
    loss = model(**given, labels=given["input_ids"]).loss
    assert torch.equal(loss, wanted)
    loss.backward()
    assert loss_of(model).pieces.left == {"gradients are recorded": 1}  # type: ignore[union-attr]


@torch.no_grad()
def test_a_copy_counts_its_own() -> None:
    model: Any = tiny.build("llama")
    in_pieces(model, 4)
    model(**prompt(1, 11), labels=prompt(1, 11)["input_ids"])
    other = loss_of(copy.deepcopy(model))
    assert other is not None
    assert (other.pieces.tokens, other.pieces.calls) == (4, 0)


@torch.no_grad()
def test_less_is_widened_at_a_time() -> None:
    logits, labels = torch.randn(1, 2048, 300).bfloat16(), torch.randint(0, 300, (1, 2048))
    model: Any = tiny.build("llama")
    in_pieces(model, 64)
    rises = []
    for loss in (model.loss_function.whole, model.loss_function):
        with peak_allocated(torch.device("cpu")) as peak:
            loss(logits=logits, labels=labels, vocab_size=300)
        rises.append(peak.peak_bytes - peak.start_bytes)
    assert rises[1] < 0.1 * rises[0]


def test_models_without_such_a_loss_are_told() -> None:
    assert why_no_loss(tiny.build("plain")) == "its forward makes no loss of next tokens by the library"
    assert why_no_loss(AutoModel.from_config(tiny.CONFIGS["llama"]())) == "it has no head that leads to its vocabulary"
    judge = AutoModelForSequenceClassification.from_config(tiny.CONFIGS["llama"]())
    assert why_no_loss(judge) == "its forward makes no loss of next tokens by the library"
    own: Any = tiny.build("llama")
    own.loss_function = lambda **given: 0
    assert why_no_loss(own) == "its forward makes no loss of next tokens by the library"


def test_each_token_is_followed_by_the_next_and_the_last_by_none() -> None:
    assert next_tokens(torch.tensor([[1, 2, 3]])).tolist() == [[2, 3, -100]]
