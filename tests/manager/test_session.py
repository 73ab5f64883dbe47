"""The session hangs on the model under one private name and goes with the last step."""

from __future__ import annotations

from inference_pio.manager.session import session_of
from inference_pio.undo.places import SESSION
from tests.sweep import NAMES, Case


def test_one_private_attribute_appears_and_goes() -> None:
    case = Case("llama")
    assert session_of(case.model) is None
    case.apply(*NAMES)
    assert SESSION in vars(case.model)
    case.manager.remove_optimizations(case.model)
    assert SESSION not in vars(case.model)


def test_held_and_parked_bytes_follow_keep_originals() -> None:
    figures = {}
    for keep in ("disk", "host", "device"):
        case = Case("llama")
        case.apply("tensor_compression", keep_originals=keep)
        session = session_of(case.model)
        assert session is not None
        figures[keep] = session.held_bytes, session.parked_bytes
        case.manager.remove_optimizations(case.model)
        case.check_untouched()
    assert figures["disk"][0] == 0
    assert figures["disk"][1] > 0
    assert figures["host"] == figures["device"] == (figures["disk"][1], 0)
