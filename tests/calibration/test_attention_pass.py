from __future__ import annotations

import pytest
import torch

from inference_pio.calibration import AttentionMass, CalibrationSource, collect_attention_mass
from inference_pio.errors import InvalidModel
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.help import inputs_for

MODELS = [name for name in tiny.TINY if name not in ("plain", "gpt2")]


def eager_mass(name: str, batch: dict[str, torch.Tensor], block: int) -> list[torch.Tensor]:
    """The attention that the library itself gives out, by blocks."""
    model = tiny.build(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions
    found = []
    for one in attentions:
        size = one.shape[-1]
        edges = [slice(start, start + block) for start in range(0, size, block)]
        rows = [torch.stack([one[:, :, q, k].sum((-1, -2)) for k in edges], -1) for q in edges]
        sums = torch.stack(rows, -2)
        found.append((sums / sums.sum(-1, keepdim=True)).mean(0))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_mass_is_that_of_the_librarys_own_attention(name: str) -> None:
    model, batch = tiny.build(name), inputs_for(name)
    truth = eager_mass(name, batch, 4)  # first: giving out attentions leaves a mark on the library's classes
    before, logits = fingerprint(model), tiny.logits(model, name)
    found = collect_attention_mass(model, CalibrationSource("one", (batch,)), block=4)
    assert len(found) == len(truth)
    for one, mass in zip(found, truth, strict=True):
        torch.testing.assert_close(one.mass, mass, rtol=1e-4, atol=1e-5)
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, name), logits)


@pytest.mark.parametrize("padded", [False, True])
def test_chosen_rows_are_those_of_the_whole(padded: bool) -> None:
    model, batch = tiny.build("qwen3"), inputs_for("qwen3")
    if padded:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][:, :3] = 0
    source = CalibrationSource("one", (batch,))
    whole = collect_attention_mass(model, source, block=4)
    last = whole[0].mass.shape[1] - 1
    for one, chosen in zip(whole, collect_attention_mass(model, source, block=4, rows=[1, last]), strict=True):
        torch.testing.assert_close(chosen.mass, one.mass[:, [1, last]])


def test_it_records_an_optimized_model_too_and_leaves_it_optimized() -> None:
    model, manager = tiny.build("qwen3"), ModularOptimizationManager()
    source = CalibrationSource("one", (inputs_for("qwen3"),))
    plain = collect_attention_mass(model, source, block=4)
    manager.apply_optimizations(model, ["flash_attention"])
    before = fingerprint(model)
    flash = collect_attention_mass(model, source, block=4)
    for one, other in zip(plain, flash, strict=True):
        torch.testing.assert_close(one.mass, other.mass, rtol=1e-4, atol=1e-5)
    assert before.differences(fingerprint(model)) == []
    manager.remove_optimizations(model)


def test_blocks_needed_counts_only_what_can_be_seen() -> None:
    even = torch.full((1, 4, 4), 0.0)
    for row in range(4):
        even[0, row, : row + 1] = 1 / (row + 1)
    assert float(AttentionMass("a", 64, even).blocks_needed(0.95)) == 1.0
    first_only = torch.zeros(1, 4, 4)
    first_only[..., 0] = 1.0
    assert float(AttentionMass("a", 64, first_only).blocks_needed(0.95)) == pytest.approx(4 / 10)


def test_batches_of_two_lengths_and_models_without_attention_are_refused() -> None:
    batches = tuple({"input_ids": torch.ones(1, length, dtype=torch.int64)} for length in (8, 70))
    with pytest.raises(InvalidModel, match="differ in length"):
        collect_attention_mass(tiny.build("llama"), CalibrationSource("two", batches))
    with pytest.raises(InvalidModel, match="no attention"):
        collect_attention_mass(tiny.build("plain"), CalibrationSource("one", (inputs_for("plain"),)))


def test_the_model_is_given_back_where_a_forward_fails() -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    with pytest.raises(IndexError):
        collect_attention_mass(model, CalibrationSource("bad", ({"input_ids": torch.full((1, 4), 10**6)},)))
    assert before.differences(fingerprint(model)) == []
