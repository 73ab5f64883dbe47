from __future__ import annotations

import pytest
import torch

from inference_pio.calibration.rows import Rows, SharingChanged


def test_a_tensor_that_was_written_to_is_another() -> None:
    rows, given = Rows(gram=False), torch.ones(2, 3)
    rows.begin(None)
    rows.note("a", given)
    given.mul_(2)
    rows.note("b", given)
    assert [(one.readers, float(one.absmax.max())) for one in rows.statistics()] == [(("a",), 1.0), (("b",), 2.0)]


def test_an_address_that_is_used_again_is_not_the_same_tensor() -> None:
    rows = Rows(gram=False)
    rows.begin(None)
    for path in "abcdefgh":
        rows.note(path, torch.ones(1, 2))
    assert [one.readers for one in rows.statistics()] == [(path,) for path in "abcdefgh"]


def test_a_change_of_who_shares_is_told() -> None:
    rows, given = Rows(gram=False), torch.ones(2, 3)
    rows.begin(None)
    rows.note("a", given)
    rows.note("b", given)
    rows.begin(None)
    rows.note("a", given)
    with pytest.raises(SharingChanged) as told:
        rows.note("b", torch.ones(2, 3))
    assert told.value.path == "b"


def test_rows_of_another_count_than_the_batch_have_no_padding() -> None:
    rows = Rows(gram=False)
    rows.begin(torch.tensor([[0, 1, 1]]))
    assert rows.without_padding(torch.ones(3, 2)).shape == (2, 2)
    assert rows.without_padding(torch.ones(4, 2)).shape == (4, 2)
