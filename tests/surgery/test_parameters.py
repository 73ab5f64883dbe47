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


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"edits": []}, "at least 1"),
        ({"edits": ["appendix"]}, "patch_linear"),
        ({"keep_ids": [1]}, "add it"),
        ({"keep_ids": [-1], "edits": ["vocabulary"]}, "0 or more"),
        ({"max_kl": 0.1, "edits": ["patch_linear"]}, "none of them is among the edits"),
        ({"remove": 0}, "greater than or equal to 1"),
        ({"depth": 3}, "unknown"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(InferencePioError, match=told):
        SurgeryParameters.read(asked, "model_surgery")
