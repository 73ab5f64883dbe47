"""All batches through one layer before the next: the same bits, each layer called batch after batch, nothing left."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.decoder_stack import decoder_stack
from inference_pio.errors import InvalidModel
from inference_pio.manager import ModularOptimizationManager
from inference_pio.streaming.layer_major import run_layer_major
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.cache.walks import prompt


def batches() -> list[dict[str, torch.Tensor]]:
    return [prompt(1, 9), prompt(2, 14, (0, 5), seed=1), prompt(3, 5, seed=2)]


@torch.no_grad()
def one_by_one(model: Any, given: list[dict[str, torch.Tensor]], **more: Any) -> list[torch.Tensor]:
    return [model(**batch, **more, use_cache=False).logits for batch in given]


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_those_of_batch_after_batch_to_the_bit(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name, dtype)
    wanted, before = one_by_one(model, batches()), fingerprint(model)
    found = run_layer_major(model, batches(), lambda number, output: (number, output.logits))
    assert [number for number, _ in found] == [0, 1, 2]
    assert all(torch.equal(logits, theirs) for (_, logits), theirs in zip(found, wanted, strict=True))
    assert before.differences(fingerprint(model)) == []


def test_each_layer_is_called_for_all_batches_before_the_next() -> None:
    model: Any = tiny.build("llama")
    called: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda module, given, number=number: called.append(number))
    told: list[float] = []
    run_layer_major(model, batches(), lambda number, output: None, progress=lambda what, share: told.append(share))
    assert called == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert told == pytest.approx([1 / 3, 2 / 3, 1])


def test_kinds_of_masks_go_to_their_own_layers_and_losses_are_made() -> None:
    config: Any = tiny.CONFIGS["qwen3"]()
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    config.use_sliding_window, config.sliding_window = True, 7
    model: Any = tiny.build("qwen3", config=config)
    given = [dict(prompt(2, 30), labels=prompt(2, 30)["input_ids"])]
    with torch.no_grad():
        wanted = model(**given[0], use_cache=False)
    (found,) = run_layer_major(model, given, lambda number, output: output)
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.loss, wanted.loss)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe_lite"])
def test_it_runs_what_optimizations_made_of_a_model(name: str) -> None:
    model: Any = tiny.build(name)
    manager = ModularOptimizationManager()
    parameters = {"kernel_fusion": {"level": "merged"}, "activation_offloading": {"prefill_chunk_size": 4}}
    names = ["tensor_compression", "flash_attention", "kernel_fusion", "activation_offloading"]
    manager.apply_optimizations(model, names, parameters=parameters)
    before, wanted = fingerprint(model), one_by_one(model, batches())
    found = run_layer_major(model, batches(), lambda number, output: output.logits)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert before.differences(fingerprint(model)) == []
    manager.remove_optimizations(model)


def test_what_is_computed_between_layers_is_refused_and_nothing_is_left() -> None:
    model = tiny.build("qwen3_vl")
    given = [tiny.inputs("qwen3_vl", model, image=True)]
    with tiny._rope_deltas_kept(model):
        before = fingerprint(model)
        with pytest.raises(InvalidModel, match="computes between its layers"):
            run_layer_major(model, given, lambda number, output: None)
    assert before.differences(fingerprint(model)) == []
    with pytest.raises(InvalidModel, match="cannot be run layer by layer: it has no attention"):
        run_layer_major(tiny.build("plain"), [], lambda number, output: None)


def test_an_error_in_a_layer_or_in_a_reader_leaves_the_model_as_it_was() -> None:
    model: Any = tiny.build("llama")
    before = fingerprint(model)

    def fail(number: int, output: Any) -> None:
        raise ValueError("read")

    with pytest.raises(ValueError, match="read"):
        run_layer_major(model, batches(), fail)
    assert before.differences(fingerprint(model)) == []
    found = decoder_stack(model)
    assert not isinstance(found, str)
    handle = model.model.layers[1].register_forward_pre_hook(lambda module, given: fail(0, None))
    with pytest.raises(ValueError, match="read"):
        run_layer_major(model, batches(), lambda number, output: None)
    handle.remove()
    assert before.differences(fingerprint(model)) == []


def test_no_batches_are_no_results() -> None:
    assert run_layer_major(tiny.build("llama"), [], lambda number, output: None) == []
