"""The status says whether there is a way back, and why not where there is none."""

from __future__ import annotations

import pytest

from inference_pio.errors import VaultError
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.sweep import Case


def test_an_ordinary_model_is_reversible_and_has_nothing_applied() -> None:
    status = Case("llama").manager.get_optimization_status(tiny.build("llama"))
    assert (status["reversible"], status["applied"]) == ("yes", [])
    assert not any(entry["enabled"] for entry in status["optimizations"].values())


def test_originals_given_up_on_purpose_are_told_and_cannot_come_back() -> None:
    case = Case("llama")
    case.apply("tensor_compression", keep_originals="none")
    assert "given up" in case.manager.get_optimization_status(case.model)["reversible"]
    before = fingerprint(case.model)
    with pytest.raises(VaultError, match="load the model anew"):
        case.manager.remove_optimizations(case.model)
    assert before.differences(fingerprint(case.model)) == []
