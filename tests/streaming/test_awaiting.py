"""Which places of a checkpoint fill a tensor: whole, or expert by expert; what only the library can join is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference_pio.errors import SourceError
from inference_pio.sources.unread import read_skeleton
from inference_pio.streaming.arrival import Arrivals
from inference_pio.streaming.awaiting import await_weights, parts_of
from inference_pio.undo.slots import tensors_of
from tests.model_folder import write_model_folder

EXPERTS = "model.layers.1.mlp.experts.gate_up_proj"


def test_fused_experts_are_filled_from_those_of_the_checkpoint_in_their_order(tmp_path: Path) -> None:
    unread = read_skeleton(write_model_folder(tmp_path / "model", "qwen3_moe", tokenizer=False))
    tensor = unread.model.get_parameter(EXPERTS)
    parts = parts_of(unread.model, [EXPERTS], tensor, unread.tensors)
    kinds = ("gate_proj", "up_proj")
    wanted = [
        f"model.layers.1.mlp.experts.{number}.{kind}.weight" for number in range(tensor.shape[0]) for kind in kinds
    ]
    assert [stored.name for _, stored in parts] == wanted
    half = tensor[0].nbytes // 2
    assert [at for at, _ in parts] == [place * half for place in range(len(wanted))]


def test_every_tensor_waits_and_costs_one_number(tmp_path: Path) -> None:
    unread = read_skeleton(write_model_folder(tmp_path / "model", "qwen3", tokenizer=False))
    arrivals = Arrivals(torch.device("cpu"))
    total = await_weights(unread.model, unread.tensors, arrivals)
    arrivals.close()
    assert total == sum(stored.nbytes for stored in unread.tensors.values())
    waiting = [tensor for tensor in tensors_of(unread.model) if isinstance(tensor, torch.nn.Parameter)]
    assert {tensor.untyped_storage().nbytes() for tensor in waiting} == {waiting[0].element_size()}
    assert unread.model.lm_head.weight is unread.model.model.embed_tokens.weight
    assert all(torch.isnan(tensor).all() for tensor in waiting)


def test_a_form_that_only_the_library_can_read_is_refused(tmp_path: Path) -> None:
    unread = read_skeleton(write_model_folder(tmp_path / "model", "llama", tokenizer=False))
    name = "model.layers.0.mlp.up_proj.weight"
    stored = unread.tensors[name]
    turned = type(stored)(stored.file, name, stored.offset, stored.nbytes, stored.dtype, stored.shape[::-1])
    with pytest.raises(SourceError, match=rf"the checkpoint has {name} in a form that only the library can read"):
        parts_of(unread.model, [name], unread.model.get_parameter(name), {name: turned})


def test_a_square_weight_that_the_library_turns_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in its shape tells; its numbered rows lie across."""
    unread = read_skeleton(write_model_folder(tmp_path / "model", "llama", tokenizer=False))
    name, other = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.attention.wq"
    tensor, stored = unread.model.get_parameter(name), unread.tensors[name]
    assert tensor.shape[0] == tensor.shape[1]
    for cut, fits in ((lambda rows: rows, True), (lambda rows: rows.mT, False)):
        monkeypatch.setattr(
            "inference_pio.streaming.awaiting.hub_tensors",
            lambda model, tensors, cut=cut: {other: cut(tensors[name])},
        )
        if fits:
            assert parts_of(unread.model, [name], tensor, {other: stored}) == ((0, stored),)
        else:
            with pytest.raises(SourceError, match="in a form that only the library can read"):
                parts_of(unread.model, [name], tensor, {other: stored})
