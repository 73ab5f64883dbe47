"""An embedding of codes hands out rows as the plain one does, and a tied head never has codes of its own."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from inference_pio.errors import InvalidModel, RefusedOnOptimized
from inference_pio.formats.compressed_embedding import CompressedEmbedding, why_no_table
from inference_pio.formats.known import known_formats
from inference_pio.plan.skeleton import skeleton_of
from inference_pio.undo.survey import named_tensors
from tests.formats.help import STEP, seeded

LOOKED_UP = [name for name, known in known_formats().items() if known.embedding is not None]
EACH = pytest.mark.parametrize("name", LOOKED_UP)


class Scaled(nn.Embedding):
    """As some families have it: what is looked up is multiplied."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 8


def pair(name: str, dtype: torch.dtype = torch.float32, bias: bool = False) -> nn.ModuleDict:
    """A head that is tied to its embedding, both in codes."""
    embedding, head = nn.Embedding(48, 64, padding_idx=3, dtype=dtype), nn.Linear(64, 48, bias=bias, dtype=dtype)
    with torch.no_grad():
        embedding.weight.copy_(seeded(48, 64))
    head.weight = embedding.weight
    known = known_formats()[name]
    assert known.embedding is not None
    table = known.embedding.from_embedding(embedding)
    return nn.ModuleDict({"plain": embedding, "embedding": table, "head": table.tied(known.linear, head)})


def are_one(model: Any) -> bool:
    embedding, head = model["embedding"], model["head"]
    return head.table_of is embedding and not head._buffers and not head.__dict__.keys() & embedding._buffers


def test_formats_of_one_scale_a_row_can_be_looked_up() -> None:
    assert LOOKED_UP == ["fp8", "int8"]


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_near_the_plain_ones_and_what_the_head_multiplies_with(name: str, dtype: torch.dtype) -> None:
    model = pair(name, dtype)
    ids = torch.tensor([[0, 3, 47], [5, 5, 1]])
    found, plain = model["embedding"](ids), model["plain"](ids)
    assert (found.dtype, found.shape) == (plain.dtype, plain.shape)
    assert (found - plain).abs().max() <= STEP[name] * model["plain"].weight.abs().max() + 0.01
    assert torch.equal(found, model["head"].dequantize()[ids].to(dtype))
    assert (model["embedding"].num_embeddings, model["embedding"].embedding_dim) == (48, 64)
    assert are_one(model)


@EACH
def test_a_move_a_cast_and_a_copy_leave_one_table(name: str) -> None:
    model = pair(name, bias=True)
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.float, lambda one: one.to("meta")):
        for part in (model, model["head"], model["embedding"]):
            codes = model["embedding"].held("weight")[0]
            change(part)
            assert are_one(model)
            assert model["embedding"].held("weight")[0].dtype is codes.dtype
    model = pair(name, bias=True)
    model["head"].to("meta")
    assert model["embedding"].device.type == "meta"
    model = pair(name, bias=True)
    model.bfloat16()
    assert model["embedding"](torch.tensor([1])).dtype is torch.bfloat16
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), through_a_file(model)):
        assert are_one(other)
        assert other["embedding"].held("weight")[0] is not model["embedding"].held("weight")[0]
        assert other["embedding"].dtype is torch.bfloat16
        other["head"].float()
        assert are_one(other)
    assert are_one(skeleton_of(model))


def through_a_file(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@EACH
def test_a_call_with_other_tensors_computes_with_those_and_leaves_its_own(name: str) -> None:
    model, other, ids = pair(name, bias=True), pair(name, bias=True), torch.tensor([[0, 3, 47]])
    model.forward = lambda ids: model["head"](model["embedding"](ids))
    other["embedding"].held("weight")[1].mul_(2)
    own, given = dict(named_tensors(model)), dict(named_tensors(other))
    expected = other["head"](other["embedding"](ids))
    found = functional_call(model, given, (ids,), strict=True)
    assert torch.equal(found, expected)
    assert not torch.equal(model(ids), expected)
    for key, tensor in named_tensors(model):
        assert tensor is own[key], key
    assert are_one(model)
    assert functional_call(model, {"head.weight_scale": seeded(48)}, (ids,)).equal(model(ids))
    assert not hasattr(model["head"], "weight_scale")


@EACH
def test_a_state_dict_fills_the_one_table_and_originals_are_refused(name: str) -> None:
    model, other = pair(name), pair(name)
    with torch.no_grad():
        other["embedding"].held("weight")[0].zero_()
    other.load_state_dict(model.state_dict())
    assert are_one(other)
    assert torch.equal(other["embedding"].held("weight")[0], model["embedding"].held("weight")[0])
    with pytest.raises(RefusedOnOptimized, match="cannot take original weights"):
        model["embedding"].load_state_dict({"weight": seeded(48, 64)})
    with pytest.raises(AttributeError, match=rf"its weights are {name} codes"):
        _ = model["embedding"].weight


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        (Scaled(4, 8), "it is a Scaled, which may do more than look rows up"),
        (nn.Embedding(4, 8, max_norm=1.0), "max_norm"),
        (nn.Embedding(4, 8, sparse=True), "sparse"),
    ],
)
def test_what_is_more_than_a_look_up_is_refused(embedding: nn.Module, reason: str) -> None:
    assert reason in str(why_no_table(embedding))
    kind = known_formats()["int8"].embedding
    assert kind is not None
    with pytest.raises(InvalidModel, match=reason):
        kind.from_embedding(embedding)


def test_training_mode_and_look_are_kept() -> None:
    model = pair("int8")
    assert repr(model["embedding"]) == "Int8Embedding(48, 64)"
    assert isinstance(model["embedding"], CompressedEmbedding)
    assert model["embedding"].training
