"""The user's own call, in all its forms, goes through the engine and comes back exactly."""

from __future__ import annotations

import functools
import gc
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from inference_pio import get_optimization_manager
from inference_pio.decoding.engine import Engine
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.takeover import ENGINE, engine_of, take_over
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.decoding.conftest import Taken, prompt
from tests.quality import reference_models
from tests.undo.help import take_back

Take = Callable[..., Taken]


def test_the_call_looks_as_it_did_and_is_given_back(take: Take) -> None:
    one = take("llama")
    assert inspect.signature(one.model.generate) == inspect.signature(one.plain.generate)
    model, engine = tiny.build("llama"), Engine(PlainOperations())
    before, journal = fingerprint(model), Journal(model)
    with journal.step("take over") as frame:
        take_over(journal, model, engine)
    assert vars(model)[ENGINE] is engine is engine_of(model)
    model.generate(**prompt(), max_new_tokens=3, pad_token_id=0)  # type: ignore[operator]
    assert engine.nbytes > 0
    take_back(journal, frame)
    assert engine_of(model) is None
    assert engine.nbytes == 0
    assert before.differences(fingerprint(model)) == []


def test_configurations_and_positions_of_arguments_are_the_librarys(take: Take) -> None:
    one, given = take("llama"), prompt()
    config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(*one.both(given["input_ids"], config, attention_mask=given["attention_mask"]))
    assert torch.equal(*one.both(given["input_ids"], max_length=15, do_sample=False))
    assert torch.equal(*one.both(inputs=given["input_ids"], max_length=15, do_sample=False))
    assert torch.equal(
        *one.both(given["input_ids"], max_length=15, do_sample=False, custom_generate=None, streamer=None)
    )
    for model in (one.model, one.plain):
        model.generation_config.update(do_sample=True, top_k=7, max_new_tokens=6)
    assert torch.equal(*one.both(**given))
    for model in (one.model, one.plain):
        model.generation_config.num_beams = 3
    assert torch.equal(*one.both(**given))
    assert one.engine.counts.left == {"beam sample": 1}
    assert one.engine.counts.calls == 5


def test_wrong_arguments_meet_the_librarys_own_words(take: Take) -> None:
    one = take("llama")
    for wrong in ({"no_such_option": 1}, {"max_new_tokens": 0}, {"temperature": -1.0, "do_sample": True}):
        said = []
        for model in (one.model, one.plain):
            with pytest.raises((ValueError, TypeError)) as caught:
                model.generate(**prompt(), **{"max_new_tokens": 3, "pad_token_id": 0, **wrong})
            said.append((type(caught.value), str(caught.value)))
        assert said[0] == said[1]
    assert torch.equal(*one.both(**prompt(), max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_prompt_beyond_the_models_positions_is_answered_as_the_library_answers_it(name: str, take: Take) -> None:
    """Rotary positions go on, and are warned about; a table of learned ones ends, and both say so in the same words."""
    one = take(name)
    limit = one.model.config.max_position_embeddings
    said: list[Any] = []
    for model in (one.model, one.plain):
        try:
            said.append(model.generate(**prompt(tokens=limit + 3), max_new_tokens=4, do_sample=False, pad_token_id=0))
        except IndexError as error:
            said.append(str(error))
    assert torch.equal(*said) if name == "llama" else said[0] == said[1] != ""
    assert torch.equal(*one.both(**prompt(), max_new_tokens=3, do_sample=False))


def test_sequences_for_one_prompt_and_unconditional_ones(take: Take) -> None:
    one = take("llama")
    ours, theirs = one.both(**prompt(2), max_new_tokens=6, do_sample=True, num_return_sequences=3)
    assert torch.equal(ours, theirs)
    assert ours.shape[0] == 6
    assert torch.equal(*one.both(bos_token_id=5, max_new_tokens=6, do_sample=False))
    assert one.engine.counts.calls == 2


def test_streamers_hear_what_they_would_hear(take: Take, capsys: pytest.CaptureFixture[str]) -> None:
    one = take("llama")
    tokenizer: Any = reference_models.tokenizer()
    heard = []
    for model in (one.model, one.plain):
        streamer: Any = TextStreamer(tokenizer)
        model.generate(**prompt(1), max_new_tokens=20, do_sample=False, streamer=streamer, pad_token_id=0)
        heard.append(capsys.readouterr().out)
    assert heard[0] == heard[1] != ""
    streamer = TextIteratorStreamer(tokenizer, timeout=30)
    given = {**prompt(1), "max_new_tokens": 20, "do_sample": False, "streamer": streamer, "pad_token_id": 0}
    thread = threading.Thread(target=one.model.generate, kwargs=given)
    thread.start()
    assert "".join(streamer) == heard[0].removesuffix("\n")
    thread.join()
    assert one.engine.counts.calls == 2


def test_stop_strings_and_criteria_of_the_users_end_a_text(take: Take) -> None:
    one = take("llama")
    tokenizer: Any = reference_models.tokenizer()
    free = one.plain.generate(**prompt(1), max_new_tokens=20, do_sample=False, pad_token_id=0)
    word = next(said for token in free[0, 14:] if len(said := tokenizer.decode(token)) == 1 and said.isalnum())
    ours, theirs = one.both(
        **prompt(1), max_new_tokens=20, do_sample=False, stop_strings=[word], tokenizer=tokenizer, pad_token_id=0
    )
    assert torch.equal(ours, theirs)
    assert theirs.shape[1] < 29
    config = GenerationConfig(max_new_tokens=20, do_sample=False, stop_strings=[word], pad_token_id=0)
    ours, theirs = one.both(**prompt(1), generation_config=config, tokenizer=tokenizer)
    assert torch.equal(ours, theirs)
    assert config.stop_strings == [word]

    class Third(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 12)

    assert torch.equal(*one.both(**prompt(2), max_new_tokens=5, do_sample=False, max_time=60.0))
    criteria = StoppingCriteriaList([Third()])
    ours, theirs = one.both(**prompt(2), max_new_tokens=20, do_sample=False, stopping_criteria=criteria)
    assert torch.equal(ours, theirs)
    assert ours.shape[1] == 12
    assert one.engine.counts.calls == 4
    for model in (one.model, one.plain):
        model.generation_config.stop_strings = [word]
    ours, theirs = one.both(**prompt(1), max_new_tokens=20, do_sample=False, tokenizer=tokenizer)
    assert torch.equal(ours, theirs)
    assert one.engine.counts.left == {"stop_strings stand in the model's own generation_config": 1}


def test_assisted_decoding_and_custom_loops_are_the_librarys(take: Take) -> None:
    one = take("llama")
    assistant = tiny.build("llama", seed=4)
    ours, theirs = one.both(**prompt(1), max_new_tokens=8, do_sample=False, assistant_model=assistant)
    assert torch.equal(ours, theirs)
    ours, theirs = one.both(**prompt(1), max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=2)
    assert torch.equal(ours, theirs)
    own = lambda model, input_ids, **given: input_ids  # noqa: E731
    said = one.model.generate(**prompt(1), custom_generate=own, max_new_tokens=3)
    assert torch.equal(said, prompt(1)["input_ids"])
    assert one.engine.counts.left == {"assisted generation": 2, "custom_generate was given": 1}


def test_inference_mode_and_what_comes_after_it(take: Take) -> None:
    one = take("qwen3")
    with torch.inference_mode():
        assert torch.equal(*one.both(**prompt(), max_new_tokens=5, do_sample=False))
    assert torch.equal(*one.both(**prompt(), max_new_tokens=300, do_sample=False))
    with torch.inference_mode():
        assert torch.equal(*one.both(**prompt(padded=1), max_new_tokens=5, do_sample=True, repetition_penalty=1.2))
    assert torch.equal(*one.both(**prompt(), max_new_tokens=5, do_sample=True, repetition_penalty=1.2))


def _wrapped(inner: Any) -> Any:
    return lambda *given, **named: inner(*given, **named)


def test_a_model_whose_generate_was_wrapped_is_free_when_it_goes() -> None:
    one: Any = tiny.build("llama")
    one.generate = _wrapped(one.generate)
    journal = Journal(one)
    with journal.step("take over"):
        take_over(journal, one, Engine(PlainOperations()))
    one.generate(**prompt(1), max_new_tokens=2, do_sample=False, pad_token_id=0)
    take_back(journal)
    gone = weakref.ref(one)
    del one, journal
    gc.collect()
    assert gone() is None


def test_a_forward_of_the_users_that_guards_stand_around_sees_every_call() -> None:
    model: Any = tiny.build("llama")
    plain, seen = model.forward, list[int]()

    def mine(*given: Any, **named: Any) -> Any:
        seen.append(named["input_ids"].shape[1])
        return plain(*given, **named)

    model.forward = functools.wraps(plain)(mine)
    get_optimization_manager().apply_optimizations(
        model, ["kernel_fusion"], parameters={"kernel_fusion": {"level": "graph"}}
    )
    model.generate(**prompt(1), max_new_tokens=3, do_sample=False, pad_token_id=0)
    engine = engine_of(model)
    assert engine is not None
    assert engine.counts.to_json()["left_to_the_library"] == {"the forward of LlamaForCausalLM is overridden": 1}
    assert seen == [9, 1, 1]
