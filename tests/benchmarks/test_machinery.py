"""The parts beneath: models at their real sizes, ceilings, bytes, processes that hang or die, attention's own check."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from benchmarks.arms import attention, ours
from benchmarks.arms.decoder import GenerateDecoder
from benchmarks.arms.room import Room
from benchmarks.suites import SUITES

from benchmarks import ceilings, pool, real_models, weights

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("qwen3-4b", 8.04), ("qwen3-30b-a3b", 61.06), ("glm-4.7-flash", 59.89)]
)
def test_real_dimensions_have_the_real_size(name: str, gigabytes: float) -> None:
    import transformers

    recipe = real_models.RECIPES[name]
    with torch.device("meta"):
        config = getattr(transformers, recipe.config)(**recipe.real)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert sum(parameter.nbytes for parameter in model.parameters()) / 1e9 == pytest.approx(gigabytes, abs=0.01)
    if name == "qwen3-30b-a3b":
        assert weights.read_per_token(model) / 1e9 == pytest.approx(6.1, abs=0.2)


@pytest.mark.parametrize("name", sorted(real_models.RECIPES))
def test_a_seed_gives_one_model_and_logits_that_say_something(name: str) -> None:
    first, second = (real_models.build(name, "cpu", smoke=True, seed=3) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        logits = first(input_ids=real_models.prompt(first, 16)).logits.float()
    assert 0.3 < logits.std() < 3.0
    assert {buffer.dtype for key, buffer in first.named_buffers() if "inv_freq" in key} == {torch.float32}


def test_ceilings_are_measured_and_what_cannot_be_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(nbytes: int) -> tuple[float, float]:
        raise OSError("no such disk")

    monkeypatch.setattr(ceilings, "disk", broken)
    found = ceilings.measure(CPU, smoke=True)
    assert found["memory copy"]["value"] > 0
    assert found["disk write"] == {"value": None, "unit": "GB/s", "reason": "no such disk"}
    assert "not measured: no such disk" in ceilings.table(found)


def test_attention_without_its_mask_is_found_out() -> None:
    tensors = attention.inputs(64, 4, 2, 16, CPU)
    (problem, *_) = attention.problems(SUITES["attention"].smoked(), True)
    right = attention.ARMS["math"].make(problem, CPU, True)(*tensors)
    assert attention.error_of(right, *tensors) < problem.tolerance
    query, key, value = tensors
    open_eyes = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert attention.error_of(open_eyes, *tensors) > problem.tolerance


def test_the_causal_blocks_by_definition_are_those_of_the_library() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    ours = attention.causal_blocks(512, CPU)
    theirs = create_block_mask(lambda b, h, q, k: q >= k, None, None, 512, 512, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
    assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
    assert ours.sparsity() == theirs.sparsity()


def test_the_package_does_not_know_its_benchmark() -> None:
    source = Path(__file__).parents[2] / "src"
    assert not [path.name for path in source.rglob("*.py") if "import benchmarks" in path.read_text()]
    assert not [path.name for path in source.rglob("*.py") if "from benchmarks" in path.read_text()]


def test_a_process_that_hangs_or_dies_is_told_and_ended() -> None:
    worker = pool.ProcessWorker("attention", "flash", device="cpu", smoke=True)
    try:
        began = time.monotonic()
        with pytest.raises(pool.Fault, match="took longer than 0 s") as told:
            worker.ask("set up", 0.01)
        assert told.value.status == "timeout"
        worker._process.kill()
        with pytest.raises(pool.Fault, match="its process ended: code -9"):
            worker.ask("round", 30)
        assert time.monotonic() - began < 30
    finally:
        worker.close()
    assert worker._process.poll() is not None


def test_a_failing_process_tells_the_end_of_its_log() -> None:
    worker = pool.ProcessWorker("attention", "no such kernel", device="cpu", smoke=True)
    try:
        with pytest.raises(pool.Fault, match="KeyError") as told:
            worker.ask("set up", 60)
        assert told.value.status == "failed"
        assert "KeyError: 'no such kernel'" in told.value.log
        assert "Traceback" in told.value.log
    finally:
        worker.close()


def test_a_fault_inside_a_system_is_an_answer() -> None:
    worker = pool.InlineWorker("attention", "no such kernel", device="cpu", smoke=True)
    with pytest.raises(pool.Fault, match="KeyError"):
        worker.ask("set up", 1)


def test_a_call_that_the_engine_leaves_to_the_library_fails_its_system() -> None:
    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    room = Room(real_models.prompt(model, 12), 20, True)
    decoder = ours.fused("graph")(model, room)
    assert len(decoder.decode(room.prompt, 4).tokens) == 4
    model.model.layers[0].mlp.register_forward_hook(lambda *given: None)  # type: ignore[union-attr, index]
    with pytest.raises(RuntimeError, match=r"left calls to the library.*carries hooks"):
        decoder.decode(room.prompt, 4)


def test_rows_are_decoded_together_and_the_last_one_is_judged() -> None:
    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    prompt = real_models.prompt(model, 12, rows=3)
    together, alone = (GenerateDecoder(model).decode(tokens, 5) for tokens in (prompt, prompt[-1:]))
    assert torch.equal(together.tokens, alone.tokens)
    assert together.rows == 3
    assert together.tokens_per_s == pytest.approx(3 * 4 / together.decode_s)
