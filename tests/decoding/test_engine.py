"""What the engine says is what the library says, bit for bit on the CPU; what it cannot do, the library does."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.decoding import call as call_module
from inference_pio.decoding import engine as engine_module
from inference_pio.decoding.call import AHEAD
from inference_pio.decoding.engine import MOST_ROWS, Engine
from inference_pio.decoding.flights import IN_FLIGHT, Flights
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.takeover import engine_of
from tests import tiny
from tests.decoding.conftest import COMPOSED, Taken, prompt

Take = Callable[..., Taken]
NEW = 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPOSED)
def test_greedy_and_sampled_tokens_are_the_librarys(name: str, dtype: torch.dtype, take: Take) -> None:
    one = take(name, dtype)
    for padded in (0, 3):
        for options in ({"do_sample": False}, {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8}):
            ours, theirs = one.both(**prompt(padded=padded), max_new_tokens=NEW, **options)
            assert torch.equal(ours, theirs)
    assert one.engine.counts.left == {}
    assert one.engine.counts.to_json()["calls"] == 4


@pytest.mark.parametrize("padded", [0, 3])
def test_penalties_and_ends_on_the_device(padded: int, take: Take) -> None:
    one = take("llama")
    options = {"repetition_penalty": 1.4, "min_new_tokens": 5, "eos_token_id": list(range(3, 60)), "do_sample": False}
    ours, theirs = one.both(**prompt(padded=padded), max_new_tokens=NEW, **options)
    assert torch.equal(ours, theirs)
    assert 9 + 5 <= theirs.shape[1] < 9 + NEW
    assert one.engine.counts.left == {}


def test_processors_of_the_host_and_scores_are_served_step_by_step(take: Take) -> None:
    one = take("qwen3_moe")
    how = {"no_repeat_ngram_size": 2, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    ours, theirs = one.both(**prompt(padded=2), max_new_tokens=NEW, **how)
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, expected in ((ours.scores, theirs.scores), (ours.logits, theirs.logits)):
        assert len(mine) == NEW
        assert all(map(torch.equal, mine, expected))
    assert one.engine.counts.calls == 1


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_a_cache_that_was_asked_for_is_the_librarys_and_goes_on(name: str, take: Take) -> None:
    one = take(name)
    ours, theirs = one.both(**prompt(), max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    assert type(ours.past_key_values) is type(theirs.past_key_values)
    for mine, expected in zip(ours.past_key_values.layers, theirs.past_key_values.layers, strict=True):
        assert torch.equal(mine.keys, expected.keys)
        assert torch.equal(mine.values, expected.values)
    one.both(**prompt(seed=5), max_new_tokens=NEW, do_sample=False)  # another call does not write into it
    assert torch.equal(ours.past_key_values.layers[1].keys, theirs.past_key_values.layers[1].keys)


def test_pictures_are_counted_in_the_positions_of_what_follows(take: Take) -> None:
    one = take("qwen3_vl")
    given = tiny.inputs("qwen3_vl", one.model, image=True)
    ours, theirs = one.both(**given, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(ours, theirs)
    text = one.both(**prompt(), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(*text)
    assert one.engine.counts.calls == 2


def test_calls_of_every_size_follow_one_another_without_a_trace(take: Take) -> None:
    one = take("llama")
    chance = torch.Generator().manual_seed(7)
    for turn in range(25):
        rows, tokens, new, padded = (int(torch.randint(1, most, (), generator=chance)) for most in (4, 40, 30, 5))
        given = prompt(rows, tokens + 5, padded, seed=turn)
        sampled = {"do_sample": bool(turn % 2), "temperature": 1.0 + turn % 3}
        ours, theirs = one.both(**given, seed=turn, max_new_tokens=new, **sampled)
        assert torch.equal(ours, theirs), turn
    assert one.engine.counts.left == {}
    assert set(one.engine._buckets) < {(rows, None) for rows in (1, 2, 3)}
    assert len(one.engine._buckets) == engine_module.KEPT_ON_A_HOST


@pytest.mark.slow
def test_a_thousand_calls_keep_no_more_than_the_largest_needs(take: Take) -> None:
    one, chance = take("qwen3"), torch.Generator().manual_seed(11)
    held = []
    for turn in range(1000):
        rows, tokens, new, padded = (int(torch.randint(1, most, (), generator=chance)) for most in (3, 40, 20, 5))
        how = {"max_new_tokens": new, "do_sample": bool(turn % 2), "repetition_penalty": 1.0 + 0.1 * (turn % 3)}
        given = prompt(rows, tokens + 5, padded, seed=turn)
        if turn % 20 == 0:
            ours, theirs = one.both(**given, seed=turn, **how)
            assert torch.equal(ours, theirs), turn
            gc.collect()
        else:
            one.model.generate(**given, pad_token_id=0, **how)
        held.append((one.engine.nbytes, sum(len(bucket.runners) for bucket in one.engine._buckets.values())))
    assert one.engine.counts.calls == 1000
    assert len(set(held[100:])) == 1, "room or recorded steps grow"


def test_room_grows_on_the_way(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "FIRST_ROOM", 8)
    one = take("glm4_moe_lite")
    ours, theirs = one.both(**prompt(padded=2), max_new_tokens=300, do_sample=False)
    assert torch.equal(ours, theirs)
    (bucket,) = one.engine._buckets.values()
    assert bucket.capacity == 512
    assert one.engine.counts.recorded == 2
    again = one.both(**prompt(padded=2), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(*again)
    assert one.engine.counts.recorded == 2


def test_embeddings_can_be_the_prompt(take: Take) -> None:
    one = take("llama")
    embeds = torch.randn(2, 7, tiny.HIDDEN, generator=torch.Generator().manual_seed(0))
    ours, theirs = one.both(inputs_embeds=embeds, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(ours, theirs)
    assert one.engine.counts.calls == 1


def test_threads_wait_for_one_another(take: Take) -> None:
    one = take("qwen3")
    prompts = [prompt(1, 5 + turn, seed=turn) for turn in range(6)]
    said: dict[int, torch.Tensor] = {}

    def say(turn: int) -> None:
        said[turn] = one.model.generate(**prompts[turn], max_new_tokens=NEW, do_sample=False, pad_token_id=0)

    threads = [threading.Thread(target=say, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for turn, given in enumerate(prompts):
        expected = one.plain.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        assert torch.equal(said[turn], expected)


LEFT: dict[str, dict[str, Any]] = {
    "beam search": {"num_beams": 2},
    "use_cache=False was given": {"use_cache": False},
    "cache_implementation='quantized' was given": {"cache_implementation": "quantized"},
    "output_hidden_states was given": {"output_hidden_states": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("reason", ["beam search", "use_cache=False was given", "output_hidden_states was given"])
def test_what_it_does_not_do_the_library_does_and_is_told(reason: str, take: Take) -> None:
    one = take("llama")
    ours, theirs = one.both(**prompt(), max_new_tokens=5, do_sample=False, **LEFT[reason])
    if not isinstance(ours, torch.Tensor):
        ours, theirs = ours.sequences, theirs.sequences
    assert torch.equal(ours, theirs)
    assert one.engine.counts.to_json()["left_to_the_library"] == {reason: 1}
    assert one.engine.counts.calls == 0


def test_decoders_of_unknown_parts_are_the_librarys(take: Take) -> None:
    one = take("gpt2")
    assert torch.equal(*one.both(**prompt(), max_new_tokens=5, do_sample=False))
    (reason,) = one.engine.counts.left
    assert "lacks a last norm" in reason


def test_too_many_rows_are_the_librarys(take: Take) -> None:
    one = take("llama")
    assert torch.equal(*one.both(**prompt(MOST_ROWS + 1, 3), max_new_tokens=3, do_sample=False))
    assert one.engine.counts.left == {f"a batch of more than {MOST_ROWS} rows": 1}
    assert torch.equal(*one.both(**prompt(MOST_ROWS, 3), max_new_tokens=3, do_sample=False))
    assert one.engine.counts.calls == 1


def test_padding_elsewhere_than_on_the_left_is_the_librarys(take: Take) -> None:
    one, given = take("llama"), prompt()
    given["attention_mask"][0, 4] = 0
    assert torch.equal(*one.both(**given, max_new_tokens=5, do_sample=False))
    (reason,) = one.engine.counts.left
    assert "padded on the left" in reason


def test_hooks_training_and_foreign_forwards_are_respected(take: Take) -> None:
    one, called = take("llama"), []
    layer = one.model.model.layers[1].mlp.up_proj
    handle = layer.register_forward_hook(lambda *given: called.append(1))
    one.both(**prompt(), max_new_tokens=5, do_sample=False)
    assert len(called) == 5
    handle.remove()
    one.both(**prompt(), max_new_tokens=5, do_sample=False)
    assert one.engine.counts.calls == 1
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 0.5
    ours = one.model.generate(**prompt(), max_new_tokens=5, do_sample=False, pad_token_id=0)
    one.plain.model.layers[1].mlp.up_proj.weight.data *= 0.5
    theirs = one.plain.generate(**prompt(), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(ours, theirs)
    del layer.forward
    one.model.train()
    one.model.generate(**prompt(), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert set(one.engine.counts.left) == {
        "Linear carries hooks, which a step of our own would not call",
        "the forward of Linear is overridden",
        "the model is in training mode",
    }
    assert one.engine.counts.calls == 1


def test_edits_between_calls_are_seen(take: Take) -> None:
    one = take("llama")
    assert torch.equal(*one.both(**prompt(), max_new_tokens=NEW, do_sample=False))
    for model in (one.model, one.plain):
        model.model.layers[0].mlp.down_proj = nn.Linear(100, tiny.HIDDEN, bias=False)
        nn.init.ones_(model.model.layers[0].mlp.down_proj.weight)
    assert torch.equal(*one.both(**prompt(), max_new_tokens=NEW, do_sample=False))
    for model in (one.model, one.plain):
        model.model.layers[1].mlp.down_proj.weight.data.mul_(3)
    assert torch.equal(*one.both(**prompt(), max_new_tokens=NEW, do_sample=False))
    for model in (one.model, one.plain):
        model.to(torch.float64)
    assert torch.equal(*one.both(**prompt(), max_new_tokens=NEW, do_sample=False))
    assert one.engine.counts.calls == 4


def test_a_model_that_computes_otherwise_than_its_parts_say_is_the_librarys(take: Take) -> None:
    one = take("llama")
    kind: Any = type(one.model.model.layers[0])
    own = type("Doubling", (kind,), {"forward": lambda self, *given, **how: kind.forward(self, *given, **how) * 2})
    for model in (one.model, one.plain):
        model.model.layers[0].__class__ = own
    assert torch.equal(*one.both(**prompt(), max_new_tokens=5, do_sample=False))
    (reason,) = one.engine.counts.left
    assert "gives other logits than the library" in reason


def test_without_memory_the_library_decodes(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    one = take("llama")
    one.both(**prompt(1), max_new_tokens=5, do_sample=False)

    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "Bucket", full)
        assert torch.equal(*one.both(**prompt(3), max_new_tokens=5, do_sample=False))
    assert list(one.engine.counts.left) == ["there was not enough memory for a cache and recorded steps of its own"]
    assert one.engine.nbytes == 0
    assert torch.equal(*one.both(**prompt(3), max_new_tokens=5, do_sample=False))
    assert one.engine.counts.calls == 2


def test_a_call_from_inside_another_is_the_librarys(take: Take) -> None:
    one = take("llama")

    class Asking:
        def __init__(self, model: Any) -> None:
            self.model, self.heard = model, list[Any]()

        def put(self, tokens: torch.Tensor) -> None:
            if len(self.heard) == 2:
                inner = self.model.generate(**prompt(1), max_new_tokens=3, do_sample=False, pad_token_id=0)
                self.heard.append(inner)
            self.heard.append(tokens)

        def end(self) -> None:
            pass

    said = []
    for model in (one.model, one.plain):
        ear = Asking(model)
        said.append(model.generate(**prompt(1), max_new_tokens=6, do_sample=False, streamer=ear, pad_token_id=0))
        said.append(ear.heard[2])
    assert torch.equal(said[0], said[2])
    assert torch.equal(said[1], said[3])
    assert one.engine.counts.left == {"a call from inside another, by a streamer, a criterion or a processor": 1}
    assert one.engine.counts.calls == 1


def test_steps_that_cannot_be_recorded_are_the_librarys_and_told(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    one = take("llama")

    def refuse(*given: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr(call_module, "record", refuse)
        assert torch.equal(*one.both(**prompt(), max_new_tokens=5, do_sample=False))
    assert list(one.engine.counts.left) == ["steps could not be recorded (RuntimeError: operation not permitted)"]
    assert one.engine.nbytes == 0
    assert torch.equal(*one.both(**prompt(), max_new_tokens=5, do_sample=False))
    assert one.engine.counts.calls == 1


def test_an_error_on_the_way_leaves_the_next_call_whole(take: Take) -> None:
    one = take("llama")

    class Breaking:
        def put(self, tokens: torch.Tensor) -> None:
            if tokens.dim() == 1:
                raise OSError("the pipe is closed")

        def end(self) -> None:
            pass

    with pytest.raises(OSError, match="pipe"):
        one.model.generate(**prompt(1), max_new_tokens=5, streamer=Breaking(), pad_token_id=0)
    assert torch.equal(*one.both(**prompt(1), max_new_tokens=5, do_sample=False))


def test_a_copy_has_an_engine_of_its_own(take: Take) -> None:
    one = take("llama")
    one.both(**prompt(), max_new_tokens=3, do_sample=False)
    twin = copy.deepcopy(one.model)
    assert engine_of(twin) is not one.engine
    said = twin.generate(**prompt(), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert torch.equal(said, one.plain.generate(**prompt(), max_new_tokens=NEW, do_sample=False, pad_token_id=0))
    twin_engine = engine_of(twin)
    assert twin_engine is not None
    assert (one.engine.counts.calls, twin_engine.counts.calls) == (1, 1)


def test_a_model_and_its_copy_decode_at_the_same_time(take: Take) -> None:
    one = take("llama")
    twin, said = copy.deepcopy(one.model), dict[int, list[torch.Tensor]]({1: [], 3: []})

    def decode(model: Any, rows: int) -> None:
        for _ in range(8):
            said[rows].append(model.generate(**prompt(rows), max_new_tokens=24, do_sample=False, pad_token_id=0))

    threads = [threading.Thread(target=decode, args=given) for given in ((one.model, 1), (twin, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, found in said.items():
        wanted = one.plain.generate(**prompt(rows), max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert [torch.equal(each, wanted) for each in found] == [True] * 8


def test_a_copy_is_freed_while_the_model_stays(take: Take) -> None:
    one = take("llama")
    twin = copy.deepcopy(one.model)
    twin.generate(**prompt(), max_new_tokens=3, pad_token_id=0)
    gone = [weakref.ref(twin.model.layers[1].mlp.down_proj), weakref.ref(twin.model.layers[1].mlp.down_proj.weight)]
    del twin
    gc.collect()
    assert [one() for one in gone] == [None, None]


@pytest.mark.parametrize("edit", ["angles", "angles in place", "scale", "class", "vocabulary", "layer"])
def test_edits_of_what_steps_read_once_are_seen(edit: str, take: Take) -> None:
    one = take("llama")
    first, _ = one.both(**prompt(), max_new_tokens=NEW, do_sample=False)
    for model in (one.model, one.plain):
        layers, rotary = model.model.layers, model.model.rotary_emb
        if edit == "angles":
            model.model.rotary_emb = copy.deepcopy(rotary)
            model.model.rotary_emb.inv_freq = rotary.inv_freq * 0.1
        elif edit == "angles in place":
            rotary.inv_freq.mul_(0.1)
        elif edit == "scale":
            layers[1].self_attn.scaling = 5.0
        elif edit == "class":
            layers[1].mlp.down_proj.__class__ = Tripled
        elif edit == "layer":
            del layers[2]
        else:
            model.resize_token_embeddings(64)
    ours, theirs = one.both(**prompt() | {"input_ids": prompt()["input_ids"] % 64}, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(ours, theirs)
    if edit != "vocabulary":
        assert not torch.equal(ours[:, 9:], first[:, 9:])


class Tripled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * -3


def test_hooks_on_all_modules_are_respected_while_they_last(take: Take) -> None:
    one, seen = take("llama"), list[str]()
    one.both(**prompt(), max_new_tokens=3, do_sample=False)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *given: seen.append(type(module).__name__)
    )
    try:
        one.model.generate(**prompt(), max_new_tokens=4, do_sample=False, pad_token_id=0)
    finally:
        handle.remove()
    assert seen.count("Linear") == 4 * (3 * 7 + 1)
    assert list(one.engine.counts.left) == ["hooks on all modules, which a step of our own would not call"]
    assert torch.equal(*one.both(**prompt(), max_new_tokens=NEW, do_sample=False))


def test_a_model_is_freed_with_its_engine() -> None:
    model: Any = tiny.build("llama")
    model._engine = Engine(PlainOperations())
    assert model._engine.why_not(model) is None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_closing_gives_all_room_back(take: Take) -> None:
    one = take("llama")
    one.both(**prompt(), max_new_tokens=3, do_sample=False)
    assert one.engine.nbytes > 0
    one.engine.close()
    assert one.engine.nbytes == 0
    assert torch.equal(*one.both(**prompt(), max_new_tokens=3, do_sample=False))


def test_a_model_under_autocast_is_the_librarys(take: Take) -> None:
    one = take("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(*one.both(**prompt(), max_new_tokens=5, do_sample=False))
    assert list(one.engine.counts.left) == ["autocast is on, and recorded steps compute in the dtypes of the weights"]


def test_what_was_tried_without_memory_is_let_go_of_before_it_is_tried_again(
    take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, made = take("llama"), list[Any]()

    class Tight(engine_module.Bucket):
        def __init__(self, *given: Any) -> None:
            assert not any(other() for other in made)
            super().__init__(*given)
            made.append(weakref.ref(self))

        def furnish(self) -> None:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(engine_module, "Bucket", Tight)
    gc.disable()
    try:
        one.model.generate(**prompt(), max_new_tokens=3, pad_token_id=0)
    finally:
        gc.enable()
    assert len(made) == 2


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"eos_token_id": list(range(3, 40))}], ids=str)
@pytest.mark.parametrize("name", ["llama", "glm4_moe_lite"])
def test_runs_of_several_steps_on_their_way_give_the_librarys_tokens(
    name: str, options: dict[str, Any], take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: four steps a run, two runs on their way, and room that grows under them."""
    sent: list[int] = []

    class Two(Flights):
        def __init__(self, slots: Any) -> None:
            super().__init__(slots)
            self.most = IN_FLIGHT

        def launch(self, runner: Any) -> None:
            sent.append(1)
            super().launch(runner)

    monkeypatch.setattr(call_module, "Flights", Two)
    monkeypatch.setattr(call_module.Call, "ahead", property(lambda self: AHEAD if self.recipe else 1))
    monkeypatch.setattr(engine_module, "FIRST_ROOM", 8)
    one = take(name)
    ours, theirs = one.both(**prompt(padded=2), max_new_tokens=270, do_sample=False, **options)
    assert torch.equal(ours, theirs)
    assert one.engine.counts.left == {}
    if "eos_token_id" not in options:
        assert len(sent) == -(-269 // AHEAD)  # none for tokens behind the last
