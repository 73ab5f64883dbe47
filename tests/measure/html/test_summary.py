from __future__ import annotations

from inference_pio.measure.html.columns import columns_of_profiles
from inference_pio.measure.html.summary import summary_of
from tests.measure.html.sample import profiles_of_record


def test_a_row_a_profile_the_plain_model_first_and_what_failed_last() -> None:
    data = profiles_of_record()
    found = summary_of(data, columns_of_profiles(data))
    assert [row.name for row in found.rows] == ["plain bfloat16", "balanced", "performance", "lossless"]
    assert found.rows[-1].failed == "nothing of it applies here"
    assert {len(row.cells) for row in found.rows[:-1]} == {len(found.heads)}


def test_a_loss_is_told_where_a_gain_is() -> None:
    data = profiles_of_record()
    plain, balanced, performance, _ = summary_of(data, columns_of_profiles(data)).rows
    assert (plain.cells[0].text, plain.cells[0].change) == ("21.6", "")
    assert (balanced.cells[0].change, balanced.cells[0].kind) == ("54% faster", "gain")
    assert (performance.cells[0].change, performance.cells[0].kind) == ("50% slower", "loss")
    assert [cell.text for cell in balanced.cells[-2:]] == ["0.0054", "96.2%"]


def test_what_was_not_measured_says_so() -> None:
    data = profiles_of_record()
    data["baseline"]["perplexity"] = None
    assert "not measured" in [cell.text for cell in summary_of(data, columns_of_profiles(data)).rows[0].cells]
