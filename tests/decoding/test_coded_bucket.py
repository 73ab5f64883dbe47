"""Steps over a cache of codes say what the library says with one, bit for bit on the CPU, pages coded on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.anatomy.decoder import decoder_of
from inference_pio.cache import KV_FORMATS, CodedCache
from inference_pio.compat import has_triton
from inference_pio.decoding.call import AHEAD
from inference_pio.decoding.coded_bucket import CodedBucket, why_not_coded_steps
from inference_pio.decoding.engine import Engine
from inference_pio.decoding.recordable import RecordableOperations
from inference_pio.decoding.step import logits_of_step
from inference_pio.decoding.takeover import take_over
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.cache.test_paged_cache import sliding_model
from tests.decoding.conftest import COMPOSED, Taken, prompt, taken
from tests.decoding.test_coded_generate import coded
from tests.sweep import in_its_turn

GROUPED = [name for name in COMPOSED if name != "glm4_moe_lite"]
NEW = 80


def wide_heads(layers: int = 2) -> Any:
    """A model whose heads a kernel reads."""
    config = copy.deepcopy(tiny.build("qwen3").config)
    config.head_dim, config.num_hidden_layers, config.layer_types = 64, layers, config.layer_types[:1] * layers
    return tiny.build("qwen3", config=config, dtype=torch.bfloat16)


def step_over_codes(operations: Any, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of one step behind 150 tokens of which 64 are coded: composed, and the library's."""
    model = wide_heads(1).to(device)
    decoder = decoder_of(model)
    assert not isinstance(decoder, str)
    tokens = prompt(tokens=151)["input_ids"].to(device)
    with torch.no_grad():
        caches = [CodedCache.of(model, "int8") for _ in range(2)]
        for cache in caches:
            model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True)
        expected = model(input_ids=tokens[:, -1:], past_key_values=caches[1], use_cache=True).logits[:, -1].float()
        bucket = CodedBucket(model, decoder, 2, 256, 1, "int8")
        bucket.furnish()
        positions = torch.full((2,), 150, device=device)
        bucket.slots.begin(tokens[:, -1], positions, length=150, made=0, coded=bucket.seat(caches[0]))
        return logits_of_step(decoder, operations, bucket), expected


def kernel_is_near(device: str = "cpu") -> None:
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.kernels.triton import coded_decode as module

    calls, original = [], module.coded_decode
    module.coded_decode = lambda *given, **how: calls.append(1) or original(*given, **how)  # type: ignore[func-returns-value]
    try:
        found, expected = step_over_codes(FusedOperations(), device)
    finally:
        module.coded_decode = original
    assert calls == [1]
    assert (found - expected).abs().max() <= 0.04 * expected.abs().max()


@in_its_turn(0, of=3)  # of whole models in the interpreter
@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
def test_our_kernel_reads_the_codes_in_the_interpreter(interpreted: Callable[..., Any]) -> None:
    interpreted(kernel_is_near)


@pytest.mark.gpu
def test_gpu_our_kernel_reads_the_codes() -> None:
    kernel_is_near("cuda")


@pytest.mark.gpu
def test_gpu_recorded_steps_say_what_the_library_says_over_codes() -> None:
    """Of 160 greedy tokens the first ones are equal; a run of several steps reads a page as it was for a while."""
    from inference_pio.decoding.fused import FusedOperations

    model, plain = (wide_heads().to("cuda") for _ in range(2))
    journal, engine = Journal(model), Engine(FusedOperations())
    with journal.step("take over"):
        take_over(journal, model, engine)
    for one in (model, plain):
        coded(one)
    given = {name: tensor.to("cuda") for name, tensor in prompt(tokens=90).items()}
    asked = {"max_new_tokens": 160, "pad_token_id": 0, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = model.generate(**given, **asked), plain.generate(**given, **asked)
    alike = (ours.sequences == theirs.sequences).all(0).int().cumprod(0).sum().item() - 90
    assert engine.counts.left == {}
    assert alike >= 8
    for found, expected in zip(ours.logits[:alike], theirs.logits[:alike], strict=True):
        assert (found - expected).abs().max() <= 0.05 * expected.abs().max()
    assert ours.past_key_values.coded_layers[0].coded == theirs.past_key_values.coded_layers[0].coded
    fast = model.generate(**given, max_new_tokens=160, pad_token_id=0)
    assert fast.shape == ours.sequences.shape
    assert (fast[:, : 90 + 32] == ours.sequences[:, : 90 + 32]).all()


def over_codes(name: str, kv_format: str, **how: Any) -> Taken:
    one = taken(name, **how)
    for model in (one.model, one.plain):
        coded(model, kv_format)
    return one


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("padded", [0, 5])
def test_tokens_and_logits_are_the_librarys_as_pages_are_coded(name: str, padded: int) -> None:
    one = over_codes(name, "int8")
    asked = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = one.both(**prompt(tokens=90, padded=padded), **asked)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(map(torch.equal, ours.logits, theirs.logits))
    assert one.engine.counts.left == {}
    assert one.engine.counts.calls == 1
    assert ours.past_key_values.coded_layers[0].coded == 64


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_each_format_and_chance_too(kv_format: str) -> None:
    one = over_codes("qwen3", kv_format)
    for options in ({"do_sample": True, "top_k": 20}, {"do_sample": False, "repetition_penalty": 1.3}):
        ours, theirs = one.both(**prompt(tokens=100), max_new_tokens=NEW, **options)
        assert torch.equal(ours, theirs)
    assert one.engine.counts.to_json()["calls"] == 2


def test_calls_with_codes_and_without_have_rooms_of_their_own_and_rooms_are_used_again() -> None:
    one = over_codes("llama", "int8")
    first = prompt(tokens=150)
    for given in (first, prompt(tokens=40), first):
        ours, theirs = one.both(**given, max_new_tokens=30)
        assert torch.equal(ours, theirs)
    assert list(one.engine._buckets) == [(2, "int8")]
    assert one.engine.nbytes > 0


def test_what_is_handed_out_goes_on_as_the_librarys(take: Callable[..., Taken]) -> None:
    one = over_codes("qwen3", "int8")
    ours, theirs = one.both(**prompt(tokens=100), max_new_tokens=NEW, return_dict_in_generate=True)
    assert isinstance(ours.past_key_values, CodedCache)
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length()
    next_token = theirs.sequences[:, -1:]
    with torch.no_grad():
        found, expected = (
            one.plain(input_ids=next_token, past_key_values=said.past_key_values).logits for said in (ours, theirs)
        )
    assert torch.equal(found, expected)


def test_room_made_in_inference_mode_is_used_outside_of_it() -> None:
    one = over_codes("qwen3", "int8")
    given = prompt(tokens=100)
    with torch.inference_mode():
        first = one.model.generate(**given, max_new_tokens=40, pad_token_id=0)
    again, theirs = one.both(**given, max_new_tokens=40)
    assert torch.equal(first, again)
    assert torch.equal(again, theirs)
    assert one.engine.counts.left == {}


def test_a_call_that_ends_with_its_prompt_hands_out_what_was_read() -> None:
    one = over_codes("qwen3", "int8")
    ours, theirs = one.both(**prompt(tokens=200), max_new_tokens=1, return_dict_in_generate=True)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length() == 200


def test_more_room_is_made_as_tokens_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_pio.decoding.engine.FIRST_ROOM", 8)
    one = over_codes("qwen3", "int8")
    ours, theirs = one.both(**prompt(tokens=230), max_new_tokens=60)
    assert torch.equal(ours, theirs)
    assert next(iter(one.engine._buckets.values())).capacity == 512


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_operations_that_can_be_recorded_read_codes_too(kv_format: str) -> None:
    one = over_codes("qwen3", kv_format, operations=RecordableOperations())
    asked = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = one.both(**prompt(tokens=90), **asked)
    assert torch.equal(ours.sequences, theirs.sequences)
    for found, expected in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert one.engine.counts.left == {}


def test_a_run_of_several_steps_fits_behind_the_last_tokens() -> None:
    """On a GPU a run may pass the end of a page; its tokens have room, and the page is coded before the next run."""
    model = tiny.build("qwen3")
    decoder = decoder_of(model)
    assert not isinstance(decoder, str)
    bucket = CodedBucket(model, decoder, 1, 512, AHEAD, "int8")
    bucket.furnish()
    for held in range(130, 600, AHEAD):
        bucket.before_run(held, AHEAD)
        recent = held - 64 * bucket.stores[0].count
        assert recent >= 64
        assert recent + AHEAD <= bucket.stores[0].keys.shape[1]
        assert bucket.coded_pages.item() == bucket.stores[0].count


def test_what_steps_do_not_read_is_left_to_the_library_with_the_reason() -> None:
    one = over_codes("glm4_moe_lite", "int8")
    ours, theirs = one.both(**prompt(tokens=140), max_new_tokens=4)
    assert torch.equal(ours, theirs)
    assert one.engine.counts.left == {
        "its cache is kept as int8 codes of a latent, which recorded steps do not read": 1
    }
    model = wide_heads()
    decoder = decoder_of(model)
    assert not isinstance(decoder, str)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for kv_format in KV_FORMATS:
        cache = CodedCache.of(model, kv_format)
        assert why_not_coded_steps(cache, decoder, cpu) is None
        assert (why_not_coded_steps(cache, decoder, cuda) is None) == (kv_format == "int8")
    some = CodedCache(model.config, "int8", but=(1,))
    assert "in some of its layers alone" in str(why_not_coded_steps(some, decoder, cpu))
    for other, told in ((tiny.build("qwen3"), "64, 128, 256 channels"), (wide_heads().float(), "models in 16 bits")):
        decoder = decoder_of(other)
        assert not isinstance(decoder, str)
        assert told in str(why_not_coded_steps(CodedCache.of(other, "int8"), decoder, cuda))


def test_a_sliding_window_is_the_librarys() -> None:
    model = sliding_model()
    cache = CodedCache.of(model, "int8")
    assert why_not_coded_steps(cache, None, torch.device("cpu")) is not None
