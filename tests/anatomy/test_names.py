"""The tables of names do not contradict one another."""

from __future__ import annotations

from inference_pio.anatomy import names


def test_no_layer_leads_to_attention_and_away_from_it() -> None:
    assert not names.ATTENTION_QKV & names.ATTENTION_OUT


def test_no_tower_is_of_two_kinds() -> None:
    assert not names.VISION_CONFIGS & names.OTHER_TOWER_CONFIGS
