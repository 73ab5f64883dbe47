from __future__ import annotations

import pytest

from inference_pio.configuration import GlobalOptimizationProfile
from inference_pio.configuration.quality_bounds import UNBOUNDED, QualityBounds
from inference_pio.errors import InvalidSetting


def test_what_is_broken_is_told_in_words_and_a_bound_itself_holds() -> None:
    bounds = QualityBounds(max_kl=0.01, max_perplexity_ratio=1.02)
    assert bounds.broken_by(0.01, 1.02) is None
    assert bounds.broken_by(0.02, 1.0) == "KL 0.02 nats/token, above max_kl=0.01"
    assert bounds.broken_by(0.0, 1.5) == "perplexity ratio 1.5, above max_perplexity_ratio=1.02"
    assert str(bounds.broken_by(0.02, 1.5)).count("above") == 2


def test_what_is_no_number_breaks_every_bound() -> None:
    assert QualityBounds(max_kl=1.0).broken_by(float("nan"), 1.0) is not None


def test_without_bounds_nothing_is_held() -> None:
    assert not UNBOUNDED.any
    assert UNBOUNDED.broken_by(9.0, 9.0) is None


def test_bounds_of_a_call_go_over_those_of_a_profile_one_by_one() -> None:
    profile = GlobalOptimizationProfile(name="mine", default_settings={"a": {}}, max_kl=0.5, max_perplexity_ratio=1.1)
    assert QualityBounds(max_kl=0.1).over(profile.bounds) == QualityBounds(max_kl=0.1, max_perplexity_ratio=1.1)
    assert UNBOUNDED.over(profile.bounds) == profile.bounds


@pytest.mark.parametrize("wrong", [{"max_kl": 0}, {"max_kl": "small"}, {"max_perplexity_ratio": 0.9}])
def test_bounds_that_nothing_could_hold_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        QualityBounds(**wrong)
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        GlobalOptimizationProfile(name="mine", default_settings={"a": {}}, **wrong)
