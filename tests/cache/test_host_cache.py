from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from inference_pio.cache import HostCache
from inference_pio.errors import InvalidModel
from tests import tiny
from tests.cache.late_lane import put_late_lanes
from tests.cache.walks import prompt, walk


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("steps", [(), (10,), (10, 20, -5)])
@pytest.mark.parametrize("but", [(), (0,)])
def test_a_walk_gives_the_logits_of_the_librarys_cache_to_the_bit(
    name: str, steps: tuple[int, ...], but: tuple[int, ...]
) -> None:
    model: Any = tiny.build(name)
    given, cache = prompt(2, 40, (0, 7)), HostCache.of(model, but=but)
    found = walk(model, cache, given, steps)
    assert torch.equal(found, walk(model, DynamicCache(config=model.config), given, steps))
    report = cache.report()
    assert report["layers"] == {"host": len(cache.layers) - len(but), **({"device": len(but)} if but else {})}
    assert report["tokens"] == 43
    assert report["brought_early"] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"penalty_alpha": 0.0}], ids=str
)
def test_generate_takes_it(dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    put_late_lanes(monkeypatch)
    model: Any = tiny.build("qwen3_moe", dtype)
    given = prompt(1, 33)
    asked = {"max_new_tokens": 9, "do_sample": False} | options
    wanted = model.generate(**given, **asked)
    assert torch.equal(model.generate(**given, **asked, past_key_values=HostCache.of(model)), wanted)


@torch.no_grad()
def test_a_prefix_may_be_copied_and_gone_on_from() -> None:
    model: Any = tiny.build("qwen3")
    given = prompt(1, 40)["input_ids"]
    cache = HostCache.of(model)
    model(given[:, :30], past_key_values=cache)
    for end in (40, 36):
        branch = copy.deepcopy(cache)
        found = model(given[:, 30:end], past_key_values=branch).logits
        wanted = model(given[:, :end]).logits[:, 30:]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert [one.get_seq_length() for one in (cache, branch)] == [30, end]


def test_sliding_layers_keep_the_librarys() -> None:
    config: Any = tiny.CONFIGS["qwen3"]()
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    config.use_sliding_window, config.sliding_window = True, 7
    model: Any = tiny.build("qwen3", config=config)
    cache, given = HostCache.of(model), prompt(2, 40)
    assert torch.equal(walk(model, cache, given, (11,)), walk(model, DynamicCache(config=model.config), given, (11,)))
    assert cache.report()["layers"] == {"device": 2, "host": 1}


def test_bytes_are_those_of_the_tokens() -> None:
    model: Any = tiny.build("glm4_moe_lite")
    cache = HostCache.of(model)
    cache.reserve(500)
    walk(model, cache, prompt(1, 500), (), new=0)
    assert cache.report()["bytes_host"] == 2 * 768 * (32 + 8) * 4
    assert cache.report()["bytes_staging"] == 3 * 768 * (32 + 8) * 4
    cache = HostCache.of(model, ahead=1)
    walk(model, cache, prompt(1, 500), (), new=0)
    assert cache.report()["bytes_staging"] == 2 * 768 * (32 + 8) * 4


def test_what_has_no_such_cache_is_refused() -> None:
    with pytest.raises(InvalidModel, match="no transformers configuration"):
        HostCache.of(nn.Linear(2, 2))
    config: Any = tiny.CONFIGS["llama"]()
    config.is_encoder_decoder = True
    with pytest.raises(InvalidModel, match="no encoder-decoder"):
        HostCache(config)


def test_what_a_cache_held_is_free_as_soon_as_nobody_holds_it() -> None:
    model: Any = tiny.build("llama")
    cache = HostCache.of(model)
    walk(model, cache, prompt(1, 40), (), new=2)
    held = [weakref.ref(one) for one in (cache, cache.staging, *cache.layers, cache.layers[0].slab)]
    gc.collect()
    gc.disable()
    try:
        del cache
        assert [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()
