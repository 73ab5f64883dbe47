from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, StaticCache

from inference_pio.anatomy.decoder_stack import decoder_stack, why_not_behind_a_cache, why_not_by_tokens
from tests import tiny


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_the_stack_of_every_family_is_found(name: str) -> None:
    found = decoder_stack(tiny.build(name))
    assert not isinstance(found, str)
    path, stack = found
    assert path == {"gpt2": "transformer", "qwen3_vl": "model.language_model"}.get(name, "model")
    assert why_not_behind_a_cache(stack) is None


def test_a_model_may_be_the_stack_itself() -> None:
    model = AutoModel.from_config(tiny.CONFIGS["llama"]())
    assert decoder_stack(model) == ("", model)


def test_what_has_no_stack_is_told() -> None:
    assert (
        decoder_stack(tiny.build("plain")) == "it has no attention that goes through the library's attention interface"
    )
    twice = nn.ModuleList([tiny.build("llama"), tiny.build("llama", seed=1)])
    assert decoder_stack(twice) == "its layers are not all in one list"
    assert "no decoder of the library's" in str(why_not_behind_a_cache(nn.Linear(2, 2)))


def test_layers_that_keep_no_tokens_are_told() -> None:
    from transformers import Qwen3NextConfig

    sizes = tiny.DECODER | {"num_hidden_layers": 4, "vocab_size": 128, "intermediate_size": 96, "head_dim": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    heads = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    model = AutoModelForCausalLM.from_config(Qwen3NextConfig(**sizes, **experts, **heads))
    found: Any = decoder_stack(model)
    reason = found if isinstance(found, str) else why_not_behind_a_cache(found[1])
    assert "layers" in str(reason)


def test_caches_of_another_kind_are_told() -> None:
    model: Any = tiny.build("llama")
    assert why_not_by_tokens(DynamicCache(config=model.config)) is None
    assert "layers of another kind (StaticLayer)" in str(why_not_by_tokens(StaticCache(model.config, max_cache_len=9)))
    moved = DynamicCache(config=model.config)
    moved.offloading = True
    assert why_not_by_tokens(moved) == "the library moves its cache off the device, one layer ahead"
