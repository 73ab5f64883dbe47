"""Reaching a target set is all or nothing, also when steps are taken back on the way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from inference_pio.errors import ModelBusy, VaultError
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.vault import Vault
from tests import tiny
from tests.sweep import TOGETHER, Case, Marker


def test_a_removal_that_cannot_fetch_its_originals_leaves_the_model_as_it_is(own_cache: Path) -> None:
    case = Case("llama")
    case.apply(*TOGETHER, keep_originals="disk")
    before, answers = fingerprint(case.model), tiny.logits(case.model, "llama")
    file = sorted((own_cache / "undo").rglob("*.bin"))[-1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(VaultError, match="damaged"):
        case.manager.remove_optimizations(case.model)
    assert before.differences(fingerprint(case.model)) == []
    assert (tiny.logits(case.model, "llama") == answers).all()
    file.write_bytes(whole)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_replay_that_fails_brings_back_what_was_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("llama")
    case.manager.register_optimization(Marker)
    case.apply("tensor_compression", "marker")
    before, answers = fingerprint(case.model), tiny.logits(case.model, "llama")

    def broken(self: Marker, model: object) -> None:
        raise RuntimeError("no second time")

    apply = Marker.apply
    monkeypatch.setattr(
        Marker, "apply", lambda self, model: apply(self, model) if self.step.forecast else broken(self, model)
    )
    with pytest.raises(RuntimeError, match="no second time"):
        case.manager.remove_optimizations(case.model, ["tensor_compression"])
    assert before.differences(fingerprint(case.model)) == []
    assert (tiny.logits(case.model, "llama") == answers).all()
    monkeypatch.undo()
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_vault_that_fails_midway_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("qwen3")
    park, count = Vault.park, [0]

    def failing(self: Vault, *given: object) -> object:
        count[0] += 1
        if count[0] == 5:
            raise VaultError("the disk went away")
        return park(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Vault, "park", failing)
    with pytest.raises(VaultError):
        case.apply("tensor_compression")
    monkeypatch.undo()
    case.check_untouched()


def test_an_edit_waits_for_a_reader_and_gives_up_after_its_timeout() -> None:
    case = Case("llama")
    case.apply(*TOGETHER)
    inside, leave = threading.Event(), threading.Event()

    def linger(*_: object) -> None:
        inside.set()
        leave.wait(20)

    handle = case.model.model.layers[0].register_forward_hook(linger)
    reader = threading.Thread(target=tiny.generate, args=(case.model, "llama", 1))
    reader.start()
    assert inside.wait(20)
    with pytest.raises(ModelBusy, match="still computing"):
        case.manager.remove_optimizations(case.model, timeout_s=0.1)
    threading.Thread(target=lambda: (time.sleep(0.1), leave.set())).start()
    case.manager.remove_optimizations(case.model, timeout_s=20)
    reader.join()
    handle.remove()
    case.check_untouched()


@pytest.mark.parametrize("standing", [(), ("flash_attention",)], ids=["plain", "optimized"])
@pytest.mark.parametrize("names", [("tensor_compression",) * 2, ("tensor_compression", "flash_attention")], ids=str)
def test_edits_of_several_threads_follow_one_another(standing: tuple[str, ...], names: tuple[str, ...]) -> None:
    case = Case("llama")
    if standing:
        case.apply(*standing)
    begin = threading.Barrier(len(names))
    problems: list[BaseException] = []

    def edit(name: str) -> None:
        begin.wait()
        try:
            case.manager.apply_optimizations(case.model, [name])
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=edit, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(case.manager.get_model_optimizations(case.model)) == sorted({*standing, *names})
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_the_first_apply_waits_for_a_running_call_and_gives_up_after_its_timeout() -> None:
    case = Case("llama")
    inside, leave = threading.Event(), threading.Event()

    def linger(*_: object) -> None:
        inside.set()
        leave.wait(20)

    handle = case.model.model.layers[0].register_forward_hook(linger)
    reader = threading.Thread(target=tiny.generate, args=(case.model, "llama", 1))
    reader.start()
    assert inside.wait(20)
    with pytest.raises(ModelBusy, match="still computing"):
        case.manager.apply_optimizations(case.model, ["tensor_compression"], timeout_s=0.1)
    threading.Thread(target=lambda: (time.sleep(0.1), leave.set())).start()
    case.manager.apply_optimizations(case.model, ["tensor_compression"], timeout_s=20)
    reader.join()
    handle.remove()
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
