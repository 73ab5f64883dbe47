"""What a module runs: dense function and pattern are switched in any order, and each taken back by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.attention_function import (
    add_pattern,
    attend_as_configured,
    attend_densely,
    run_dense,
    run_pattern,
)
from inference_pio.anatomy.attention_name import OVER
from inference_pio.anatomy.walk import attention_modules
from inference_pio.compat import add_attention_function, library_attention
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction
from tests import tiny

CALLS: list[tuple[str, str]] = []
PATTERN, DENSE = "inference_pio_test_pattern", "inference_pio_test_dense"


def _dense(module: Any, *args: Any, **rest: Any) -> Any:
    CALLS.append(("dense", str(module.layer_idx)))
    return library_attention()(module, *args, **rest)


def _pattern(attend: Any, module: Any, *args: Any, **rest: Any) -> Any:
    CALLS.append(("pattern", str(module.layer_idx)))
    return attend(module, *args, **rest)


@pytest.fixture(autouse=True)
def _known() -> None:
    add_pattern(PATTERN, _pattern)
    add_attention_function(DENSE, _dense)
    CALLS.clear()


def _names(model: Any) -> list[str]:
    return [module.config._attn_implementation for _, module, role in attention_modules(model) if role == "attention"]


def _paths(model: Any) -> list[str]:
    return [path for path, _, role in attention_modules(model) if role == "attention"]


@pytest.mark.parametrize("name", [name for name in tiny.TINY if name != "plain"])
@pytest.mark.parametrize("first", ["pattern", "dense"])
def test_either_order_gives_the_pattern_over_the_dense_function(name: str, first: str) -> None:
    model = tiny.build(name)
    expected = tiny.logits(model, name)
    before, journal, paths = _names(model), Journal(model), _paths(model)
    steps = {
        "pattern": lambda: run_pattern(journal, model, paths, PATTERN),
        "dense": lambda: run_dense(journal, model, paths, DENSE),
    }
    for step in (first, *(steps.keys() - {first})):
        with journal.step(step):
            steps[step]()
    assert set(_names(model)) == {f"{PATTERN}{OVER}{DENSE}"}
    torch.testing.assert_close(tiny.logits(model, name), expected, rtol=1e-4, atol=1e-4)
    assert [kind for kind, _ in CALLS[:2]] == ["pattern", "dense"]
    transaction = Transaction(journal)
    transaction.undo(list(journal.frames))
    transaction.commit()
    assert _names(model) == before
    assert torch.equal(tiny.logits(model, name), expected)


def test_single_layers_get_a_configuration_of_their_own() -> None:
    model = tiny.build("llama")
    journal, paths = Journal(model), _paths(model)
    with journal.step("one layer"):
        run_pattern(journal, model, paths[1:2], PATTERN)
    with journal.step("all"):
        run_dense(journal, model, paths, DENSE)
    assert _names(model) == [DENSE, f"{PATTERN}{OVER}{DENSE}", DENSE]
    tiny.logits(model, "llama")
    assert {call for call in CALLS if call[0] == "pattern"} == {("pattern", "1")}
    assert {call for call in CALLS if call[0] == "dense"} == {("dense", "0"), ("dense", "1"), ("dense", "2")}


def test_a_pattern_over_eager_attention_gets_its_masks_in_the_form_it_reads() -> None:
    model = tiny.build("qwen3")
    given = tiny.inputs("qwen3", model)
    given["attention_mask"][0, :3] = 0
    model.set_attn_implementation("eager")
    expected = model(**given).logits[:, -1]
    journal = Journal(model)
    with journal.step("pattern"):
        run_pattern(journal, model, _paths(model), PATTERN)
    torch.testing.assert_close(model(**given).logits[:, -1], expected, rtol=1e-4, atol=1e-4)


def test_a_module_attends_from_outside_as_its_forward_would() -> None:
    model: Any = tiny.build("llama")
    journal, module = Journal(model), model.model.layers[1].self_attn
    query, key = torch.randn(2, 4, 1, 16), torch.randn(2, 2, 6, 16)
    expected, _ = library_attention()(module, query, key, key, None, scaling=0.2)
    assert torch.equal(attend_as_configured(module, query, key, key, None, scaling=0.2), expected)
    paths = [path for path, _, _ in attention_modules(model)]
    with journal.step("switch"):
        run_dense(journal, model, paths, DENSE)
        run_pattern(journal, model, paths, PATTERN)
    assert torch.equal(attend_as_configured(module, query, key, key, None, scaling=0.2), expected)
    assert CALLS == [("pattern", "1"), ("dense", "1")]


def test_a_module_attends_densely_whatever_pattern_stands_over_it() -> None:
    model: Any = tiny.build("llama")
    journal, module = Journal(model), model.model.layers[1].self_attn
    query, key = torch.randn(2, 4, 6, 16), torch.randn(2, 2, 6, 16)
    expected, _ = library_attention()(module, query, key, key, None, scaling=0.2)
    assert torch.equal(attend_densely(module, query, key, key, None, scaling=0.2), expected)
    with journal.step("switch"):
        run_dense(journal, model, _paths(model), DENSE)
        run_pattern(journal, model, _paths(model), PATTERN)
    assert torch.equal(attend_densely(module, query, key, key, None, scaling=0.2), expected)
    assert CALLS == [("dense", "1")]


def test_latents_decoded_as_they_are_cached_are_told_to_the_pattern() -> None:
    from inference_pio.manager import ModularOptimizationManager

    model: Any = tiny.build("glm4_moe_lite")
    given = {"adaptive_sparse_attention": {"dense_below": 0}}
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["flash_attention", "adaptive_sparse_attention"], parameters=given)
    tokens = torch.randint(1, 120, (1, 40), generator=torch.Generator().manual_seed(0))
    model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False, pad_token_id=0)
    counted = manager.get_optimization_status(model)["optimizations"]["adaptive_sparse_attention"]["counted"]
    assert counted["dense_calls"]["a latent cache that is decoded as it is"] == 4 * 2
