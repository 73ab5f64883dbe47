from __future__ import annotations

import warnings

import pytest

from inference_pio.configuration.legacy import Migration, Unmatched
from inference_pio.configuration.legacy.told import warn_of_legacy


def documented() -> None:
    warn_of_legacy("this", "new(1)\n", Migration({}, unmatched=(Unmatched("odd", 3, "it is not there"),)))


def test_one_warning_shows_the_new_spelling_and_points_at_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        documented()
    (one,) = caught
    assert one.category is DeprecationWarning
    assert one.filename == __file__
    assert str(one.message) == (
        "this is a legacy form. Write it so:\nnew(1)\nNot carried over: odd = 3: it is not there."
    )


def test_without_anything_left_over_only_the_spelling_is_shown() -> None:
    with pytest.warns(DeprecationWarning, match=r"Write it so:\nnew\(1\)$"):
        warn_of_legacy("this", "new(1)", Migration({}))
