"""What may be asked of surgery, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from inference_pio.errors import InferencePioError
from inference_pio.surgery.parameters import APPROXIMATE, WITHOUT_LOSS, SurgeryParameters


def test_without_words_only_what_loses_nothing_is_meant() -> None:
    assert SurgeryParameters().names == WITHOUT_LOSS
    assert not set(APPROXIMATE) & set(WITHOUT_LOSS)


def test_a_bar_lets_the_approximate_ones_join_and_names_are_taken_once() -> None:
    assert SurgeryParameters(max_kl=0.1).names == (*WITHOUT_LOSS, *APPROXIMATE)
    assert SurgeryParameters(edits=["blocks", "blocks"], max_kl=0.1).names == ("blocks",)


def test_defaults_contradict_nothing_when_they_are_written_out() -> None:
    assert SurgeryParameters(remove=1, refit=True, stray=0.125).names == WITHOUT_LOSS


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"edits": []}, "at least 1"),
        ({"edits": ["appendix"]}, "patch_linear"),
        ({"keep_ids": [1]}, "add it"),
        ({"keep_ids": [-1], "edits": ["vocabulary"]}, "0 or more"),
        ({"max_kl": 0.1, "edits": ["patch_linear"]}, "none of them is among the edits"),
        ({"remove": 2}, "remove is for the edits attention, blocks"),
        ({"refit": False, "edits": ["vocabulary"]}, "refit is for the edits"),
        ({"stray": 0.25, "edits": ["text_only"]}, "stray is for the edits"),
        ({"stray": 0.25, "refit": False, "edits": ["blocks"]}, "refit is false"),
        ({"remove": 0}, "greater than or equal to 1"),
        ({"depth": 3}, "unknown"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(InferencePioError, match=told):
        SurgeryParameters.read(asked, "model_surgery")
