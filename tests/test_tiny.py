"""The tiny models are what the other tests think they are."""

from __future__ import annotations

import pytest
import torch

from tests import tiny


@pytest.mark.parametrize("name", list(tiny.TINY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_built_in_its_dtype_and_gives_finite_logits_that_differ(name: str, dtype: torch.dtype) -> None:
    model = tiny.TINY[name](dtype=dtype)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    logits = tiny.logits(model, name).float()
    assert logits.isfinite().all()
    assert logits.std(-1).min() > 0.05


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_a_seed_decides_everything_and_the_global_random_state_stays(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = tiny.build(name, seed=3), tiny.build(name, seed=3), tiny.build(name, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(tiny.logits(first, name), tiny.logits(again, name))
    assert not torch.equal(tiny.logits(first, name), tiny.logits(other, name))


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_two_models_can_share_one_config_object(name: str) -> None:
    config = tiny.CONFIGS[name]()
    first, second = tiny.build(name, config=config), tiny.build(name, config=config)
    assert first.config is second.config is config
    assert torch.equal(tiny.logits(first, name), tiny.logits(tiny.build(name), name))


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_generate_needs_no_tokenizer(name: str) -> None:
    model = tiny.build(name)
    assert tiny.generate(model, name, new_tokens=3).shape == (2, tiny.TEXT_TOKENS + 3)


def test_asking_for_logits_leaves_no_trace_on_a_vision_model() -> None:
    model = tiny.build("qwen3_vl")
    first = tiny.logits(model, "qwen3_vl")
    assert model.model.rope_deltas is None
    assert torch.equal(tiny.logits(model, "qwen3_vl"), first)


def test_only_the_vision_model_takes_an_image() -> None:
    with pytest.raises(ValueError, match="llama takes no image"):
        tiny.inputs("llama", tiny.build("llama"), image=True)
