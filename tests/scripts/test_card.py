"""The card that readers see is the page of the figures beside it."""

import json

import pytest
from scripts.reference.architectures import NAMES
from scripts.reference.card import page

from tests.quality.reference_models import FOLDER


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_the_page_of_its_figures(name):
    facts = json.loads((FOLDER / name / "card.json").read_text(encoding="utf-8"))
    assert (FOLDER / name / "MODEL_CARD.md").read_text(encoding="utf-8") == page(facts)
