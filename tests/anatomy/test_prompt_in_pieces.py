from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from inference_pio.anatomy.decoder_stack import decoder_stack
from inference_pio.anatomy.pieces import Pieces, pieces_of
from inference_pio.anatomy.prompt_in_pieces import lead_prompts_in_pieces
from inference_pio.cache import CodedCache, PagedCache
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.cache.walks import prompt

CLOSE = {"rtol": 1e-4, "atol": 5e-6}


def in_pieces(model: Any, tokens: int) -> Pieces:
    found = decoder_stack(model)
    assert not isinstance(found, str)
    journal = Journal(model)
    with journal.step("pieces"):
        lead_prompts_in_pieces(journal, found[1], tokens)
    pieces = pieces_of(found[1])
    assert pieces is not None
    return pieces


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize(("rows", "tokens", "size", "made"), [(1, 33, 8, 5), (2, 20, 14, 3), (3, 5, 2, 5)])
@torch.no_grad()
def test_a_prompt_in_pieces_is_the_prompt(name: str, rows: int, tokens: int, size: int, made: int) -> None:
    model: Any = tiny.build(name)
    given = prompt(rows, tokens)
    wanted = model(**given, use_cache=True)
    pieces = in_pieces(model, size)
    found = model(**given, use_cache=True)
    torch.testing.assert_close(found.logits, wanted.logits, **CLOSE)
    assert pieces.to_json() == {"calls": 1, "pieces": made, "left_whole": {}}
    for ours, theirs in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, **CLOSE)
        torch.testing.assert_close(ours.values, theirs.values, **CLOSE)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("padding", [(0, 0), (0, 9), (13, 2)])
def test_generate_says_the_same_tokens(name: str, padding: tuple[int, int]) -> None:
    model: Any = tiny.build(name)
    given = prompt(2, 21, padding)
    asked: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    wanted = model.generate(**given, **asked)
    pieces = in_pieces(model, 12)
    assert torch.equal(model.generate(**given, **asked), wanted)
    assert pieces.to_json() == {"calls": 1, "pieces": 4, "left_whole": {}}


def test_beams_samples_and_guesses_say_the_same_too() -> None:
    model: Any = tiny.build("qwen3")
    given = prompt(1, 30)
    asked: list[dict[str, Any]] = [{"num_beams": 3}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 11}]
    wanted = [model.generate(**given, max_new_tokens=6, **how) for how in asked]
    pieces = in_pieces(model, 8)
    for how, said in zip(asked, wanted, strict=True):
        assert torch.equal(model.generate(**given, max_new_tokens=6, **how), said), how
    assert pieces.calls >= 3


@pytest.mark.parametrize("tokens", [1, 3, 6])
@torch.no_grad()
def test_pictures_are_seen_wherever_they_are_cut(tokens: int) -> None:
    model: Any = tiny.build("qwen3_vl")
    given = tiny.inputs("qwen3_vl", model, image=True)
    wanted, said = model(**given).logits, model.generate(**given, max_new_tokens=4, do_sample=False)
    pieces = in_pieces(model, tokens)
    torch.testing.assert_close(model(**given).logits, wanted, **CLOSE)
    assert torch.equal(model.generate(**given, max_new_tokens=4, do_sample=False), said)
    assert (pieces.calls, pieces.left) == (2, {})


@torch.no_grad()
def test_rows_with_pictures_at_different_places_keep_their_own() -> None:
    model: Any = tiny.build("qwen3_vl")
    one, other = (tiny.inputs("qwen3_vl", model, seed=seed, image=True) for seed in (0, 1))
    pad = torch.zeros(1, 3, dtype=torch.long)
    given = {
        "input_ids": torch.cat(
            [torch.cat([one["input_ids"], pad + 7], 1), torch.cat([pad + 9, other["input_ids"]], 1)]
        ),
        "mm_token_type_ids": torch.cat(
            [torch.cat([one["mm_token_type_ids"], pad], 1), torch.cat([pad, other["mm_token_type_ids"]], 1)]
        ).int(),
        "pixel_values": torch.cat([one["pixel_values"], other["pixel_values"]]),
        "image_grid_thw": torch.cat([one["image_grid_thw"], other["image_grid_thw"]]),
    }
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    wanted = model(**given).logits
    pieces = in_pieces(model, 4)
    torch.testing.assert_close(model(**given).logits, wanted, **CLOSE)
    assert pieces.calls == 1


@torch.no_grad()
def test_a_sliding_window_is_slid_along() -> None:
    config: Any = tiny.CONFIGS["qwen3"]()
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    config.use_sliding_window, config.sliding_window = True, 7
    model: Any = tiny.build("qwen3", config=config)
    given = prompt(2, 40, (0, 11))
    wanted = model(**given).logits
    pieces = in_pieces(model, 18)
    torch.testing.assert_close(model(**given).logits[0], wanted[0], **CLOSE)
    torch.testing.assert_close(model(**given).logits[1, 11:], wanted[1, 11:], **CLOSE)
    assert (pieces.calls, pieces.left) == (2, {})


@pytest.mark.parametrize("kind", [PagedCache.of, DynamicCache])
@torch.no_grad()
def test_a_prompt_goes_on_behind_a_cache_that_was_given(kind: Any) -> None:
    model: Any = tiny.build("glm4_moe_lite")
    given = prompt(2, 30, (0, 4))
    wanted = model(**given).logits
    pieces = in_pieces(model, 10)
    cache = kind(model) if kind is not DynamicCache else DynamicCache(config=model.config)
    mask = given["attention_mask"]
    model(input_ids=given["input_ids"][:, :13], attention_mask=mask[:, :13], past_key_values=cache)
    found = model(input_ids=given["input_ids"][:, 13:], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(found, wanted[:, 13:], **CLOSE)
    assert cache.get_seq_length() == 30
    assert (pieces.calls, pieces.made) == (2, 7)


@torch.no_grad()
def test_behind_a_cache_of_codes_a_piece_reads_codes_of_those_before() -> None:
    model: Any = tiny.build("qwen3")
    given = prompt(1, 300)
    fed = CodedCache.of(model, "int8")
    wanted = torch.cat(
        [
            model(input_ids=part, past_key_values=fed, attention_mask=torch.ones(1, (number + 1) * 100)).logits
            for number, part in enumerate(given["input_ids"].split(100, 1))
        ],
        1,
    )
    in_pieces(model, 100)
    found = model(**given, past_key_values=CodedCache.of(model, "int8")).logits
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_cache": False}, "it keeps no cache, through which pieces see those before them"),
        ({"output_hidden_states": True}, "output_hidden_states was asked for"),
        ({"return_dict": False}, None),
        ({"past_key_values": "static"}, "its cache has layers of another kind (StaticLayer)"),
    ],
    ids=str,
)
@torch.no_grad()
def test_calls_that_stay_whole_are_counted_and_answered(options: dict[str, Any], reason: str | None) -> None:
    model: Any = tiny.build("llama")
    given = prompt(1, 12)

    def answer() -> torch.Tensor:
        static = options.get("past_key_values") == "static"
        more = {"past_key_values": StaticCache(model.config, max_cache_len=16)} if static else options
        found: torch.Tensor = model(**given, **more)[0 if "return_dict" in options else "logits"]
        return found

    wanted = answer()
    pieces = in_pieces(model, 5)
    if reason is None:
        torch.testing.assert_close(answer(), wanted, **CLOSE)
        return
    assert torch.equal(answer(), wanted)
    assert pieces.to_json() == {"calls": 0, "pieces": 0, "left_whole": {reason: 1}}


def test_what_is_learned_from_stays_whole() -> None:
    model: Any = tiny.build("llama")
    pieces = in_pieces(model, 5)
    model(**prompt(1, 12)).logits.sum().backward()
    assert model.model.embed_tokens.weight.grad is not None
    assert pieces.left == {"gradients are recorded, or it is training": 1}


@torch.no_grad()
def test_positions_by_hand_and_arguments_by_place_are_cut_as_well() -> None:
    model: Any = tiny.build("llama")
    stack, given = model.model, prompt(1, 14)
    ids, mask, positions = given["input_ids"], given["attention_mask"], torch.arange(3, 17)[None]
    wanted = stack(ids, mask, positions).last_hidden_state
    pieces = in_pieces(model, 4)
    torch.testing.assert_close(stack(ids, mask, positions).last_hidden_state, wanted, **CLOSE)
    embeds = model.get_input_embeddings()(ids)
    found = stack(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert pieces.calls == 2


@torch.no_grad()
def test_a_copy_of_the_model_works_in_pieces_of_its_own() -> None:
    model: Any = tiny.build("llama")
    in_pieces(model, 4)
    other = copy.deepcopy(model)
    given = prompt(1, 9)
    assert torch.equal(other(**given).logits, model(**given).logits)
    assert [pieces_of(one.model).calls for one in (model, other)] == [1, 1]  # type: ignore[union-attr]
