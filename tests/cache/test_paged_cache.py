"""A model with this cache says, bit by bit, what it says with the library's, in forward and in generate."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen3Config, T5Config

from inference_pio.cache import PagedCache
from inference_pio.errors import InvalidModel, InvalidSetting, UnknownName
from tests import tiny
from tests.cache.walks import both, check_sidecars, prompt, walk

WALKS = {  # steps of a prompt of 131 tokens, the padding of its two rows, and the model's dtype
    "whole": ((), (), torch.float32),
    "chunks, padded": ((33, 1, 30), (9, 0), torch.bfloat16),
    "odd pages, a page padded": ((63, 1, 1, 64), (70, 66), torch.float32),
    "crops": ((70, -3, 1, -40, 37), (), torch.bfloat16),
    "crops, padded": ((70, -3, 1, -40, 37), (35, 2), torch.float32),
}


def generate(model: Any, cache: Any, given: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    return model.generate(**given, past_key_values=cache, max_new_tokens=6, do_sample=False, **options)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize(("steps", "padding", "dtype"), WALKS.values(), ids=WALKS)
def test_logits_are_bit_by_bit_the_librarys(
    name: str, steps: tuple[int, ...], padding: tuple[int, ...], dtype: torch.dtype
) -> None:
    ours, theirs = both(tiny.build(name, dtype), prompt(2, 131, padding), steps)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_so_they_are_under_eager_attention_but_for_gpt2_which_multiplies_views_as_they_lie(name: str) -> None:
    model = tiny.build(name)
    model.set_attn_implementation("eager")
    ours, theirs = both(model, prompt(3, 70, (9, 0, 0)), (33, 1))
    if name == "gpt2":
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)  # of logits up to 3.7
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("tokens", [63, 129])
def test_generate_says_the_same_and_goes_on_from_there(name: str, tokens: int) -> None:
    model, given = tiny.build(name), prompt(2, tokens, (0, 7))
    caches = PagedCache.of(model, sidecars=True, attention_mask=given["attention_mask"]), DynamicCache()
    ours, theirs = (generate(model, cache, given) for cache in caches)
    assert torch.equal(ours, theirs)
    check_sidecars(caches[0])
    mask = torch.nn.functional.pad(given["attention_mask"], (0, ours.shape[1] + 4 - tokens), value=1)
    longer = {"input_ids": torch.cat([ours, prompt(2, 4, seed=1)["input_ids"]], 1), "attention_mask": mask}
    ours, theirs = (generate(model, cache, longer) for cache in caches)
    assert torch.equal(ours, theirs)
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == ours.shape[1] - 1


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_beams_say_the_same(name: str) -> None:
    model, given = tiny.build(name), prompt(2, 61, (0, 5))
    mask = given["attention_mask"].repeat_interleave(3, 0)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True}
    ours = PagedCache.of(model, sidecars=True, attention_mask=mask)
    assert torch.equal(generate(model, ours, given, **options), generate(model, DynamicCache(), given, **options))
    check_sidecars(ours)
    with pytest.raises(InvalidSetting, match="With beams, repeat"):
        generate(model, PagedCache.of(model, attention_mask=given["attention_mask"]), given, num_beams=3)


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite", "gpt2"])
def test_chunks_of_a_prompt_and_guessed_tokens_that_are_cropped_say_the_same(name: str) -> None:
    model, given = tiny.build(name), prompt(1, 70)
    for options in ({"prefill_chunk_size": 33}, {"prompt_lookup_num_tokens": 4}):
        ours = PagedCache.of(model, sidecars=True)
        assert torch.equal(generate(model, ours, given, **options), generate(model, DynamicCache(), given, **options))
        check_sidecars(ours)


def test_pictures_say_the_same() -> None:
    model = tiny.build("qwen3_vl")
    given = tiny.inputs("qwen3_vl", model, image=True)
    assert torch.equal(generate(model, PagedCache.of(model), given), generate(model, DynamicCache(), given))


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_rows_of_the_batch_are_repeated_and_chosen(name: str) -> None:
    model, given = tiny.build(name), prompt(2, 66, (0, 3))
    ours = PagedCache.of(model, sidecars=True, attention_mask=given["attention_mask"])
    theirs = DynamicCache(config=model.config)
    for cache in (ours, theirs):
        walk(model, cache, given, (), new=0)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0, 1]))
        cache.reorder_cache(torch.tensor([1, 0, 2]))
    check_sidecars(ours)
    rows = [0, 1, 0]
    mask = torch.nn.functional.pad(given["attention_mask"][rows], (0, 5), value=1)
    ids = prompt(3, 5, seed=2)["input_ids"]
    with torch.no_grad():
        found = [model(ids, attention_mask=mask, past_key_values=cache).logits for cache in (ours, theirs)]
    assert torch.equal(*found)
    check_sidecars(ours)


def test_a_copy_of_a_prompts_cache_goes_on_by_itself() -> None:
    model, given = tiny.build("qwen3"), prompt(1, 70)
    cache = PagedCache.of(model, sidecars=True)
    walk(model, cache, given, (), new=0)
    copies = [copy.deepcopy(cache) for _ in range(2)]
    said = [generate(model, each, prompt(1, 75)) for each in copies]
    assert torch.equal(*said)
    assert copies[0].span is copies[0].paged_layers[-1].span is not cache.span
    assert cache.get_seq_length() == 70
    assert torch.equal(generate(model, cache, prompt(1, 75)), said[0])


def test_a_reset_cache_serves_the_next_prompt_where_the_last_one_lay() -> None:
    model = tiny.build("glm4_moe")
    cache = PagedCache.of(model, capacity=200, attention_mask=prompt(2, 20, (3, 0))["attention_mask"])
    generate(model, cache, prompt(2, 20, (3, 0)))
    place = cache.layers[0].store.tensors[0].data_ptr()
    with pytest.raises(InvalidSetting, match=r"holds 25 tokens: reset\(\)"):
        cache.set_padding(prompt(2, 30, (0, 6))["attention_mask"])
    cache.reset()
    given = prompt(2, 30, (0, 6))
    cache.set_padding(given["attention_mask"])
    assert torch.equal(generate(model, cache, given), generate(model, DynamicCache(), given))
    assert cache.layers[0].store.tensors[0].data_ptr() == place
    cache.reserve(1000)
    assert {layer.capacity for layer in cache.paged_layers} == {1024}


def sliding_model() -> Any:
    """Tokens see the last 20 in its first layer, and all in the others."""
    sizes = tiny.CONFIGS["qwen3"]().to_dict()
    sizes |= {"sliding_window": 20, "use_sliding_window": True}
    sizes["layer_types"] = ["sliding_attention", "full_attention", "full_attention"]
    return tiny.build("qwen3", config=Qwen3Config(**sizes))


def test_sliding_windows_keep_the_librarys_layers() -> None:
    model, given = sliding_model(), prompt(2, 70)
    cache = PagedCache.of(model)
    theirs = DynamicCache(config=model.config)
    assert cache.is_sliding == theirs.is_sliding == [True, False, False]
    assert torch.equal(*(walk(model, each, given, (30, 1)) for each in (cache, theirs)))
    assert cache.report()["layers"] == {"DynamicSlidingWindowLayer": 1, "paged": 2}
    with pytest.raises(UnknownName, match="unknown paged layer 0 in sidecars="):
        PagedCache.of(model, sidecars=[0])


@pytest.mark.parametrize(("name", "kind"), [("qwen3", "paged"), ("glm4_moe_lite", "latent")])
def test_the_report_counts_every_byte(name: str, kind: str) -> None:
    model = tiny.build(name)
    cache = PagedCache.of(model, sidecars=[1])
    assert (cache.nbytes, cache.report()["tokens"]) == (0, 0)
    walk(model, cache, prompt(2, 64), (), new=0)
    report, layers = cache.report(), len(cache)
    a_token = sum(states.numel() * 4 for states in (cache.layers[0].keys, cache.layers[0].values)) // 64
    assert report["layers"] == {kind: layers}
    assert report["sidecars"] == {"torch": 1}
    assert (report["tokens"], report["capacity"]) == (64, 256)
    assert report["bytes_reserved"] == a_token * 256 * layers
    assert report["bytes_used"] == a_token * 64 * layers
    assert report["bytes_sidecars"] == cache.layers[1].sidecar.nbytes > 0
    assert cache.nbytes == report["bytes_reserved"] + report["bytes_sidecars"]
    assert json.loads(json.dumps(report)) == report


def test_what_it_cannot_serve_is_refused() -> None:
    with pytest.raises(InvalidModel, match="no transformers configuration"):
        PagedCache.of(tiny.build("plain"))
    with pytest.raises(InvalidModel, match="no encoder-decoder"):
        PagedCache(T5Config())
    model = tiny.build("qwen3")
    with pytest.raises(InvalidSetting, match="capacity=-1"):
        PagedCache.of(model, capacity=-1)
    with pytest.raises(UnknownName, match="unknown paged layer 3"):
        PagedCache.of(model, sidecars=[3])
    with pytest.raises(InvalidSetting, match=r"torch.no_grad"):
        model(**prompt(1, 5), past_key_values=PagedCache.of(model))


def test_tokens_that_others_wrote_are_held_as_if_they_had_come() -> None:
    model = tiny.build("qwen3")
    first, second = (PagedCache.of(model, capacity=64) for _ in range(2))
    tokens = torch.arange(2, 20).view(2, 9)
    with torch.no_grad():
        model(input_ids=tokens, past_key_values=first, use_cache=True)
        model(input_ids=tokens[:, :1], past_key_values=second, use_cache=True)
        for mine, theirs in zip(second.paged_layers, first.paged_layers, strict=True):
            assert mine.store is not None
            assert theirs.store is not None
            for to, written in zip(mine.store.tensors, theirs.store.tensors, strict=True):
                to.copy_(written)
        second.hold(9)
        assert second.get_seq_length() == 9
        assert second.span.length is not None
        assert int(second.span.length) == 9
        last = torch.tensor([[3], [4]])
        found, expected = (
            model(input_ids=last, past_key_values=each, use_cache=True).logits for each in (second, first)
        )
    assert torch.equal(found, expected)
