"""The reference models are the ones their cards describe: frozen by hash, small, and as good as the cards say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.reference.architectures import NAMES
from scripts.reference.caption_quality import caption_quality
from scripts.reference.corpus import documents, stream
from scripts.reference.evaluate import last_logits, needle, slices, text_losses
from scripts.reference.export import WEIGHTS, load, sha256
from scripts.reference.retrieval import Lines
from scripts.reference.tables import MARKS, tables
from scripts.reference.tokenizer import load_tokenizer

FOLDER = Path(__file__).parent
BYTES_EACH, BYTES_IN_ALL = 8_000_000, 36_000_000


def _card(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    return stream([text for _, text in documents(held_out=True)], load_tokenizer(FOLDER / "qwen3"))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_the_ones_the_card_describes(name: str) -> None:
    weights = FOLDER / name / WEIGHTS
    assert sha256(weights) == _card(name)["sha256"]
    assert weights.stat().st_size <= BYTES_EACH


def test_all_models_together_stay_within_their_limit() -> None:
    files = [path for name in NAMES for path in (FOLDER / name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= BYTES_IN_ALL


def test_all_models_share_one_tokenizer() -> None:
    assert len({(FOLDER / name / "tokenizer.json").read_bytes() for name in NAMES}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_held_out_text_is_as_likely_as_the_card_says(name: str, held_out: np.ndarray) -> None:
    # The card's text is another Python's: six slices stray from all of it by their own spread, and by a little more.
    losses = text_losses(load(FOLDER / name), slices(held_out, 6), batch=2).mean(axis=1)
    spread = float(losses.std(ddof=1)) / math.sqrt(len(losses))
    assert abs(float(losses.mean()) - _card(name)["text"]["held_out_loss_nats"]) <= 0.05 + 3 * spread


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", ["4096", "8192"])
def test_the_card_records_that_needles_are_found(name: str, length: str) -> None:
    assert np.mean(list(_card(name)["needles_in_text"][length].values())) >= 0.95


def test_the_card_records_that_attention_is_peaked() -> None:
    for name in NAMES:
        blocks = _card(name)["blocks_for_95_percent"]
        assert (blocks["length"], blocks["mean"] <= 0.35) == (8192, True), name


def test_a_needle_is_found_four_thousand_tokens_later(held_out: np.ndarray) -> None:
    lines = Lines.of(load_tokenizer(FOLDER / "qwen3"))
    one = needle(4096, 0.2, lines, held_out, np.random.default_rng(0), others=False)
    assert int(last_logits(load(FOLDER / "qwen3"), one.prompt[None]).argmax()) == one.answer


def test_captions_need_the_picture() -> None:
    told = caption_quality(load(FOLDER / "qwen3_vl"), load_tokenizer(FOLDER / "qwen3_vl"), count=12)
    assert told["with"]["fields"] >= 0.9
    assert told["swapped"]["fields"] <= 0.5
    assert told["without"]["fields"] <= 0.5


def test_the_page_about_them_shows_what_the_cards_say() -> None:
    page = (FOLDER.parents[1] / "docs" / "reference-models.md").read_text(encoding="utf-8")
    shown = page.split(MARKS[0])[1].split(MARKS[1])[0].strip()
    assert shown == tables({name: _card(name) for name in NAMES})
