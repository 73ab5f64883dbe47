"""Patterns act on causal attention of text to all that came before, and say why they pass over the rest."""

from __future__ import annotations

import pytest

from inference_pio.anatomy.pattern_sites import why_no_pattern
from inference_pio.anatomy.walk import attention_modules
from tests import tiny


@pytest.mark.parametrize("name", [name for name in tiny.TINY if name != "plain"])
def test_all_text_attention_and_no_vision(name: str) -> None:
    for _, module, role in attention_modules(tiny.build(name)):
        assert (why_no_pattern(module, role) is None) is (role != "vision")


def test_what_bounds_itself_is_passed_over_with_the_reason() -> None:
    model = tiny.build("qwen3")
    (_, first, role), (_, second, _), (_, third, _) = attention_modules(model)
    first.sliding_window = 128
    assert why_no_pattern(first, role) == "a sliding window bounds it already"
    second.is_causal = False
    assert why_no_pattern(second, role) == "it does not attend to earlier tokens alone"
    del third.config
    assert why_no_pattern(third, role) == "its attention does not go through the library's attention interface"
