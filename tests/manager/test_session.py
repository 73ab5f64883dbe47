"""The session hangs on the model under one private name and goes with the last step."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from inference_pio.manager.session import session_of
from inference_pio.undo.places import SESSION
from tests.sweep import TOGETHER, Case


def test_one_private_attribute_appears_and_goes() -> None:
    case = Case("llama")
    assert session_of(case.model) is None
    case.apply(*TOGETHER)
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


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_switching_one_step_while_another_stands_keeps_no_folder_or_file_open(own_cache: Path) -> None:
    case = Case("llama")
    case.apply("flash_attention")
    case.apply("tensor_compression", keep_originals="disk")
    case.manager.remove_optimizations(case.model, ["tensor_compression"])
    gc.collect()  # what earlier tests left open is closed now, not while files are counted
    before = open_files()
    for _ in range(5):
        case.apply("tensor_compression", keep_originals="disk")
        case.manager.remove_optimizations(case.model, ["tensor_compression"])
    assert open_files() == before
    assert len(list((own_cache / "undo").iterdir())) == 1
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_name_that_is_no_path_is_no_checkpoint() -> None:
    for name in (5000 * "x", "a\0b"):
        case = Case("llama")
        case.model.config._name_or_path = name
        assert case.apply("tensor_compression")
        assert case.manager.get_receipts(case.model)[0].parked_bytes
        case.manager.remove_optimizations(case.model)
        assert case.model.config._name_or_path == name
