"""An edit that uses every verb fails at every write, in every way: the model is as it was before."""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.parked import View
from inference_pio.undo.slots import Write
from inference_pio.undo.transaction import Transaction
from inference_pio.undo.vault import KeepOriginals, Vault
from tests import tiny
from tests.undo.help import edit_everything, take_back

ERRORS = (RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError, MemoryError)


@contextmanager
def failing_at(number: int, when: str, error: type[BaseException]) -> Iterator[None]:
    """Let the journal's n-th write fail, before or after it was done."""
    write, left = Journal._write, [number]

    def broken(journal: Journal, entry: Write) -> None:
        left[0] -= 1
        if when == "before" and left[0] < 0:
            raise error("injected")
        write(journal, entry)
        if when == "after" and left[0] < 0:
            raise error("injected")

    Journal._write = broken  # type: ignore[method-assign]
    try:
        yield
    finally:
        Journal._write = write  # type: ignore[method-assign]


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_failure_at_any_write_leaves_the_model_as_it_was(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    before, out = fingerprint(model), tiny.logits(model, name)
    journal = Journal(model, Vault("disk", tmp_path))
    number, reached_the_end = 0, False
    while not reached_the_end:
        for when in ("before", "after"):
            error = ERRORS[(2 * number + (when == "after")) % len(ERRORS)]
            try:
                with failing_at(number, when, error), journal.step("edit"):
                    edit_everything(journal, model)
                reached_the_end = True
                break
            except error:
                assert before.differences(fingerprint(model)) == [], (number, when, error)
                assert journal.frames == []
        number += 1
    assert number > 12
    take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, name), out)
    assert list(tmp_path.rglob("*.bin")) == []


def pressing_ctrl_c(journal: Journal, seconds: float, deed: Callable[[Transaction], None]) -> None:
    """Do something as one transaction, with a Ctrl-C so many seconds after its start if it still runs then."""
    armed, transaction = [True], Transaction(journal)
    handler = signal.signal(signal.SIGALRM, lambda *given: armed[0] and signal.raise_signal(signal.SIGINT))
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        deed(transaction)
        transaction.commit()
        armed[0] = False
    except KeyboardInterrupt:
        armed[0] = False
        transaction.rollback()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.filterwarnings(  # Python can be interrupted between the opening of a file and the `with` that closes it
    "ignore:.*(BufferedWriter|FileIO|ScandirIterator|scandir iterator).*:pytest.PytestUnraisableExceptionWarning",
    "ignore:.*gc_callback.*:pytest.PytestUnraisableExceptionWarning",  # torch's compiler times every collection
)
def test_ctrl_c_at_any_moment_leaves_the_model_edited_or_as_it_was(tmp_path: Path) -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    moments = random.Random(0)
    outcomes = {"edited": 0, "as before": 0}
    for _ in range(150):
        pressing_ctrl_c(journal, moments.uniform(1e-5, 4e-3), lambda _: _step(journal))
        outcomes["edited" if journal.frames else "as before"] += 1
        assert torch.is_grad_enabled()
        if not journal.frames:
            assert before.differences(fingerprint(model)) == []
            continue
        standing, frames = fingerprint(model), list(journal.frames)
        pressing_ctrl_c(
            journal, moments.uniform(1e-5, 1e-3), lambda transaction, frames=frames: transaction.undo(frames)
        )
        assert (standing if journal.frames else before).differences(fingerprint(model)) == []
        assert torch.is_grad_enabled()
        take_back(journal, *journal.frames)
        assert before.differences(fingerprint(model)) == []
    assert outcomes["as before"] > 0


def test_a_ctrl_c_while_a_tensor_is_made_again_leaves_no_gradient_mode_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    view, enter, entered = View.of(torch.ones(2)), torch.inference_mode.__enter__, []

    def struck(mode: torch.inference_mode) -> None:
        enter(mode)
        entered.append(mode.mode)
        if len(entered) == 2:  # the one inside of `no_grad`
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch.inference_mode, "__enter__", struck)
    with pytest.raises(KeyboardInterrupt):
        view.on(torch.ones(2).untyped_storage())
    gc.collect()
    assert torch.is_grad_enabled()


def _step(journal: Journal) -> None:
    with journal.step("edit"):
        edit_everything(journal, journal.model)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "plain"])
def test_a_failure_in_a_second_step_leaves_the_first_one(name: str, error: type[BaseException], tmp_path: Path) -> None:
    model = tiny.build(name)
    before = fingerprint(model)
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("first"):
        edit_everything(journal, model)
    standing, out = fingerprint(model), tiny.logits(model, name)
    for number in range(0, 14, 3):
        with pytest.raises(error), failing_at(number, "after", error), journal.step("second"):
            edit_everything(journal, model)
        assert standing.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, name), out)
    take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize("keep", ["auto", "host", "device", "none"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe"])
def test_the_edit_comes_off_exactly_whatever_keeps_the_originals(
    name: str, keep: KeepOriginals, tmp_path: Path
) -> None:
    model = tiny.build(name, dtype=torch.bfloat16)
    before, out = fingerprint(model), tiny.logits(model, name)
    journal = Journal(model, Vault(keep, tmp_path))
    transaction = Transaction(journal)
    with journal.step("edit"):
        edit_everything(journal, model)
    assert not torch.equal(tiny.logits(model, name), out)
    if keep == "none":
        transaction.rollback()
    else:
        transaction.commit()
        take_back(journal, *journal.frames)
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, name), out)


@pytest.mark.parametrize("name", ["llama", "gpt2", "plain"])
def test_training_goes_on_after_the_edit_has_come_off(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("edit"):
        edit_everything(journal, model)
    model.train()
    take_back(journal, *journal.frames)
    assert all(module.training for module in model.modules() if not isinstance(module, nn.Identity))
    given = tiny.inputs(name, model)
    answer = model(**given)
    (answer if name == "plain" else answer.logits).float().sum().backward()
    assert [path for path, one in model.named_parameters() if one.grad is None] == []
