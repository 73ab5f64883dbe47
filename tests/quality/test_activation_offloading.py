"""Trained models say in pieces, token by token, what they say whole; a long forward takes a quarter of the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TextStreamer

from inference_pio.cache import HostCache
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure.allocations import peak_allocated
from tests.cache.late_lane import put_late_lanes
from tests.quality import reference_models
from tests.quality.reference_models import NAMES
from tests.sweep import rotating, turn_of_this_commit

NAME = "activation_offloading"
CPU = torch.device("cpu")
SHARES = {"glm4_moe_lite": 5}
"""Its attention makes keys and values of all latents in the cache for every piece, which alone is a sixth here."""
EMBEDDED_OUTSIDE = {"qwen3_vl"}
"""Its outer model embeds the whole text, for pictures to be put in, before it calls the stack of layers."""
SIZES = {"prefill_chunk_size": 128, "mlp_chunk_tokens": 96, "logits_chunk_tokens": 64}


def in_pieces(model: Any, *others: str, **parameters: Any) -> ModularOptimizationManager:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, [*others, NAME], parameters={NAME: parameters or SIZES})
    return manager


def counted(manager: ModularOptimizationManager, model: Any) -> dict[str, Any]:
    applied = manager.get_optimization_status(model)["applied_optimizations"]
    found: dict[str, Any] = next(one["counted"] for one in applied if one["name"] == NAME)
    return found


def padded(rows: int, tokens: int, padding: int) -> dict[str, torch.Tensor]:
    ids = reference_models.draw(1, rows, tokens)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Heard(TextStreamer):
    def __init__(self) -> None:
        super().__init__(reference_models.tokenizer())
        self.texts: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("name", rotating(NAMES, turn_of_this_commit()))
def test_greedy_tokens_are_the_same_for_a_padded_batch_and_for_a_stream(name: str) -> None:
    model = reference_models.load(name, torch.float32)
    given, alone = padded(3, 250, 71), padded(1, 300, 0)
    asked: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
    wanted = [model.generate(**one, **asked) for one in (given, alone)]
    whole = Heard()
    model.generate(**alone, **asked, streamer=whole)
    manager = in_pieces(model)
    for one, said in zip((given, alone), wanted, strict=True):
        assert torch.equal(model.generate(**one, **asked), said)
    heard = Heard()
    model.generate(**alone, **asked, streamer=heard)
    assert heard.texts == whole.texts
    told = counted(manager, model)
    assert told["decoder"] == {"calls": 3, "pieces": 6 + 3 + 3, "left_whole": {}}
    assert told["mlp"]["left_whole"] == {}


def test_pictures_are_answered_the_same() -> None:
    model = reference_models.load("qwen3_vl", torch.float32)
    questions = reference_models.pictures(3)
    asked: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False}
    wanted = [model.generate(**question.inputs, **asked) for question in questions]
    manager = in_pieces(model, prefill_chunk_size=5)
    for question, said in zip(questions, wanted, strict=True):
        assert torch.equal(model.generate(**question.inputs, **asked), said)
    assert counted(manager, model)["decoder"]["calls"] == 3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_and_losses_are_the_same_up_to_rounding(name: str) -> None:
    model = reference_models.load(name, torch.float32)
    ids = reference_models.draw(2, 1, 512)
    wanted = model(input_ids=ids, labels=ids)
    manager = in_pieces(model)
    found = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-6, atol=0)
    assert counted(manager, model)["loss"]["pieces"] == 8


@pytest.mark.parametrize("name", NAMES)
def test_tokens_through_a_cache_on_the_host_are_the_librarys_to_the_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_late_lanes(monkeypatch)
    model = reference_models.load(name)
    asked: dict[str, Any] = {
        "max_new_tokens": 48, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    given = padded(2, 230, 40)
    wanted = model.generate(**given, **asked)
    found = model.generate(**given, **asked, past_key_values=HostCache.of(model, but=(0,)))
    assert torch.equal(found.sequences, wanted.sequences)
    assert all(torch.equal(one, other) for one, other in zip(found.logits, wanted.logits, strict=True))


@pytest.mark.parametrize(
    "name", [name if name in ("qwen3", "qwen3_moe") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
@torch.no_grad()
def test_a_forward_of_4k_tokens_takes_at_most_a_quarter_of_the_memory(name: str) -> None:
    model, tokens = reference_models.load(name), 4096
    ids = reference_models.draw(3, 1, tokens)

    def rise() -> tuple[int, torch.Tensor]:
        with peak_allocated(CPU) as peak:
            found = model(input_ids=ids, logits_to_keep=1)
        kept = sum(side.nbytes for layer in found.past_key_values.layers for side in (layer.keys, layer.values))
        return peak.peak_bytes - peak.start_bytes - kept, found.logits

    ModularOptimizationManager().apply_optimizations(model, ["flash_attention"])
    whole, wanted = rise()
    budget = whole // SHARES.get(name, 8)
    in_pieces(model, max_activation_bytes=budget, text_tokens=tokens)
    pieces, logits = rise()
    embedded = model.get_input_embeddings()(ids).nbytes if name in EMBEDDED_OUTSIDE else 0
    print(f"{name}: {whole / 1e6:.1f} MB whole, {pieces / 1e6:.1f} MB in pieces ({pieces / whole:.3f})")
    assert pieces <= 0.25 * whole
    assert pieces - embedded <= 1.1 * budget
    assert logits.argmax(-1).equal(wanted.argmax(-1))
