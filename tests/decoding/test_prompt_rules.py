"""Which prompts are read by recorded forwards, and why the library reads the others; what they count is told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

from inference_pio import get_optimization_manager
from inference_pio.anatomy.call_guards import put_around
from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding import prompt_rules
from inference_pio.decoding.prompt_rules import PromptRules, rules_of, why_never
from inference_pio.decoding.prompt_runners import MOST_TOKENS
from inference_pio.decoding.takeover import engine_of
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.decoding.conftest import COMPOSED, Reading, Recorded, Taken, prompt

Take = Callable[..., Taken]


def left(one: Taken) -> dict[str, int]:
    found: dict[str, int] = one.engine.counts.to_json()["prompts_left_to_the_library"]
    return found


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (prompt(2, 9) | {"prefill_chunk_size": 4}, "prefill_chunk_size was given"),
        (prompt(2, 9) | {"position_ids": torch.arange(5, 14).expand(2, 9)}, "position_ids were given"),
        (prompt(2, 9, padded=3) | {"position_ids": torch.arange(9).expand(2, 9)}, "position_ids were given"),
        (prompt(1, 300) | {"max_new_tokens": 2}, "more than 256 tokens, filled up and of all rows"),
        (prompt(3, 70) | {"max_new_tokens": 2}, "more than 256 tokens, filled up and of all rows"),
    ],
)
def test_other_prompts_are_the_librarys_and_counted(
    given: Any, reason: str, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_rules, "MOST_TOKENS", 256)
    one = take("qwen3", operations=Reading())
    ours, theirs = one.both(**({"max_new_tokens": 4} | given), do_sample=False)
    assert torch.equal(ours, theirs)
    assert one.engine.counts.prompts == 0
    assert [told for told in left(one) if told.startswith(reason)]


def test_a_model_whose_positions_hang_on_pictures_reads_its_own_prompts(take: Take) -> None:
    one = take("qwen3_vl", operations=Reading())
    ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    assert left(one) == {"its positions hang on pictures": 1}


@pytest.mark.parametrize("name", COMPOSED)
def test_steps_that_do_not_read_prompts_count_none(name: str, take: Take) -> None:
    one = take(name)
    one.both(**prompt(), max_new_tokens=2, do_sample=False)
    assert one.engine.counts.prompts == 0
    assert left(one) == {}


def test_arguments_that_are_not_known_leave_a_prompt_to_the_library(take: Take) -> None:
    one = take("qwen3", operations=Reading())
    ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False, output_router_logits=None)
    assert torch.equal(ours, theirs)
    assert one.engine.counts.prompts == 1
    ids = prompt()["input_ids"]
    embeds = one.model.get_input_embeddings()(ids).detach()
    ours, theirs = one.both(input_ids=ids, inputs_embeds=embeds, max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    assert left(one) == {"inputs_embeds was given": 1}


def test_a_model_that_does_more_than_its_parts_keeps_its_own_prompts(take: Take) -> None:
    one = take("qwen3", operations=Reading())
    for model in (one.model, one.plain):  # steps of one token are as they were
        stack = model.model
        kind = type(stack)
        stack.__class__ = type("Shifted", (kind,), {"forward": _long_calls_doubled(kind)})
    ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    (told,) = left(one)
    assert told.startswith("a prompt composed of its parts differs from the library's (cosine ")


def _long_calls_doubled(kind: Any) -> Any:
    def forward(self: Any, *given: Any, **named: Any) -> Any:
        out = kind.forward(self, *given, **named)
        if out.last_hidden_state.shape[1] > 1:
            out.last_hidden_state = out.last_hidden_state.flip(-1)
        return out

    return forward


@pytest.mark.parametrize(
    ("name", "dense_under", "reason"),
    [
        ("qwen3", 400, None),
        ("qwen3", 9, "a pattern of attention is asked"),
        ("glm4_moe_lite", 400, "its attention keeps a latent and follows a pattern"),
    ],
)
def test_a_pattern_is_asked_for_the_prompts_that_it_does_not_leave_dense(
    name: str, dense_under: int, reason: str | None
) -> None:
    model = tiny.build(name)
    manager = get_optimization_manager()
    manager.apply_optimizations(
        model,
        ["kernel_fusion", "adaptive_sparse_attention"],
        parameters={"adaptive_sparse_attention": {"dense_below": dense_under}},
    )
    engine = engine_of(model)
    assert engine is not None
    engine.operations = Recorded()
    engine.close()
    asked = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    counts = "adaptive_sparse_attention", "counted", "dense_calls"
    before = _told(manager.get_optimization_status(model)["optimizations"], counts)
    said, plain = (each.generate(**prompt(), **asked) for each in (model, tiny.build(name)))
    assert reason == "a pattern of attention is asked" or torch.equal(said, plain)
    assert engine.counts.prompts_left == ({} if reason is None else {reason: 1})
    assert engine.counts.prompts == int(reason is None)
    if reason is None:  # what a prompt left dense is counted in the same words, whoever reads it: layers, and a step
        told = _told(manager.get_optimization_status(model)["optimizations"], counts)
        layers, short = len(model.model.layers), f"fewer than {dense_under} tokens"  # type: ignore[union-attr, arg-type]
        assert told[short] - before.get(short, 0) >= 2 * layers
        assert "short rows" not in told


def _told(found: Any, path: tuple[str, ...]) -> dict[str, int]:
    for name in path:
        found = found[name]
    return dict(found)


def test_prompts_longer_than_a_piece_are_the_librarys() -> None:
    model = tiny.build("qwen3")
    given = {"prefill_chunk_size": 16, "mlp_chunk_tokens": 8}
    get_optimization_manager().apply_optimizations(
        model, ["kernel_fusion", "activation_offloading"], parameters={"activation_offloading": given}
    )
    engine = engine_of(model)
    assert engine is not None
    engine.operations = Recorded()
    engine.close()
    for tokens in (8, 9, 17):
        model.generate(**prompt(1, tokens), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert engine.counts.prompts_left == {"it is longer than the pieces that prompts are led through in": 2}
    assert engine.counts.prompts == 1
    get_optimization_manager().remove_optimizations(model, ["activation_offloading"])
    model.generate(**prompt(1, 17), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert engine.counts.prompts == 2


def test_experts_with_a_forward_put_around_them_are_the_librarys() -> None:
    model: Any = tiny.build("qwen3_moe")
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    assert why_never(decoder, ()) is None
    journal = Journal(model)
    with journal.step("bring"):
        put_around(journal, model.model.layers[1].mlp.experts, lambda module, inner, given, named: inner(module))
    assert why_never(decoder, ()) == "its experts are brought as they are asked for"


def test_the_bound_is_that_of_the_pattern_that_begins_first() -> None:
    one, two = (prompt_rules.Patterned(nn.Identity(), bound, "short rows") for bound in (400, 90))
    assert PromptRules(None).dense_below == MOST_TOKENS + 1
    assert PromptRules(None, (one, two)).dense_below == 90


def test_a_row_of_padding_alone_is_the_librarys(take: Take) -> None:
    one = take("qwen3", operations=Reading())
    given = prompt(2, 9, padded=9)
    ours, theirs = one.both(**given, max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    assert left(one) == {"a row is padding alone": 1}


def test_inputs_that_a_model_prepares_in_its_own_way_are_the_librarys(take: Take) -> None:
    one = take("qwen3", operations=Reading())
    for model in (one.model, one.plain):
        inner = model.prepare_inputs_for_generation

        @functools.wraps(inner)
        def backwards(ids: Any, inner: Any = inner, **how: Any) -> Any:
            found = inner(ids, **how)
            return found | {"input_ids": found["input_ids"].flip(-1)}

        model.prepare_inputs_for_generation = backwards
    ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    assert left(one) == {"prepare_inputs_for_generation is the model's own": 1}


def test_what_a_model_hands_on_in_its_own_way_is_the_librarys(take: Take) -> None:
    one = take("qwen3", operations=Reading())
    for model in (one.model, one.plain):
        inner = model._update_model_kwargs_for_generation

        def reads(outputs: Any, *given: Any, inner: Any = inner, **how: Any) -> Any:
            assert outputs.logits.dim() == 3
            return inner(outputs, *given, **how)

        model._update_model_kwargs_for_generation = reads
    ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    assert left(one)["_update_model_kwargs_for_generation is the model's own"] == 1


def test_prompts_over_a_cache_in_codes_are_the_librarys() -> None:
    model = tiny.build("qwen3")
    get_optimization_manager().apply_optimizations(
        model, ["kernel_fusion", "tensor_compression"],
        parameters={"tensor_compression": {"kv_cache": "int8", "targets": []}},
    )  # fmt: skip
    engine = engine_of(model)
    assert engine is not None
    engine.operations = Recorded()
    engine.close()
    model.generate(**prompt(), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert engine.counts.prompts_left == {"its keys and values are kept as codes": 1}


def test_an_attention_function_that_needs_a_mask_reads_its_own_prompts(take: Take) -> None:
    name = "needs_a_mask_in_test"

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> Any:
        assert mask.shape[-1] >= key.shape[2]  # none is no mask
        return eager_attention_forward(module, query, key, value, mask, **how)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, eager_mask)
    one = take("llama", operations=Recorded())
    for model in (one.model, one.plain):
        model.set_attn_implementation(name)
    ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    (told,) = left(one)
    assert told.startswith("a prompt could not be composed (AttributeError: ")


def test_logits_of_another_size_are_seen(take: Take) -> None:
    model: Any = tiny.build("qwen3")
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    assert rules_of(model, decoder, Reading()).every is None
    kind = type(model)

    def forward(self: Any, *given: Any, **named: Any) -> Any:
        out = kind.forward(self, *given, **named)
        out.logits = out.logits * 0.25
        return out

    model.__class__ = type("Quarter", (kind,), {"forward": forward})
    assert "differs from the library's" in str(rules_of(model, decoder, Reading()).every)
