from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.decoder_stack import decoder_stack
from inference_pio.anatomy.pieces import pieces_of, whole_calls
from inference_pio.anatomy.rows_in_pieces import compute_rows_in_pieces, row_blocks
from inference_pio.undo.journal import Journal
from tests import tiny


def block_of(name: str, number: int = -1) -> tuple[Any, nn.Module]:
    model = tiny.build(name)
    found = decoder_stack(model)
    assert not isinstance(found, str)
    return model, list(row_blocks(found[1]))[number][1]


def in_pieces(model: nn.Module, block: nn.Module, tokens: int) -> None:
    journal = Journal(model)
    with journal.step("pieces"):
        compute_rows_in_pieces(journal, block, tokens)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_every_layer_has_one_block(name: str) -> None:
    model = tiny.build(name)
    found = decoder_stack(model)
    assert not isinstance(found, str)
    paths = [path for path, _ in row_blocks(found[1])]
    layers = "h" if name == "gpt2" else "layers"
    assert paths == [f"{layers}.{number}.mlp" for number in range(len(paths))]
    assert len(paths) == model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr]


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize(("rows", "tokens", "size"), [(1, 7, 3), (2, 5, 1), (3, 4, 11), (1, 12, 4)])
@torch.no_grad()
def test_rows_in_pieces_are_those_of_the_whole(name: str, rows: int, tokens: int, size: int) -> None:
    model, block = block_of(name)
    x = torch.randn(rows, tokens, tiny.HIDDEN, generator=torch.Generator().manual_seed(0))
    wanted = block(x)
    in_pieces(model, block, size)
    torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-6)
    pieces = pieces_of(block)
    assert pieces is not None
    assert pieces.to_json() == {"calls": 1, "pieces": -(-rows * tokens // size), "left_whole": {}}
    assert torch.equal(block(x[:1, :1]), block(x[:1, :1].clone()))
    assert pieces.calls == 1, "what fits a piece is not counted"


@torch.no_grad()
def test_what_lies_apart_in_memory_is_read_right() -> None:
    model, block = block_of("qwen3")
    x = torch.randn(5, 3, tiny.HIDDEN).transpose(0, 1)
    wanted = block(x)
    in_pieces(model, block, 4)
    torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-6)


def test_calls_that_stay_whole_are_counted_with_the_reason() -> None:
    model, block = block_of("llama")
    x = torch.randn(1, 6, tiny.HIDDEN)
    with torch.no_grad():
        wanted = block(x)
    in_pieces(model, block, 2)
    assert torch.equal(block(x), wanted)
    pieces = pieces_of(block)
    assert pieces is not None
    assert pieces.to_json() == {"calls": 0, "pieces": 0, "left_whole": {"gradients are recorded, or it is training": 1}}
    with torch.no_grad(), whole_calls():
        assert torch.equal(block(x), wanted)
    assert sum(pieces.left.values()) == 1


@torch.no_grad()
def test_an_output_of_another_shape_is_left_as_it_is() -> None:
    class Summing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(-2)

    model = nn.Sequential(Summing()).eval()
    in_pieces(model, model[0], 2)
    x = torch.randn(1, 6, 4)
    assert torch.equal(model[0](x), x.sum(-2))
    pieces = pieces_of(model[0])
    assert pieces is not None
    assert pieces.to_json()["left_whole"] == {"its output is not a row for each row": 1}


@torch.no_grad()
def test_routers_are_asked_once_where_their_answers_are_collected() -> None:
    model, block = block_of("qwen3_moe")
    given = tiny.inputs("qwen3_moe", model)
    wanted = model(**given, output_router_logits=True).router_logits
    in_pieces(model, block, 3)
    found = model(**given, output_router_logits=True).router_logits
    assert [one.shape for one in found] == [one.shape for one in wanted]
    pieces = pieces_of(block)
    assert pieces is not None
    assert pieces.to_json()["left_whole"] == {"the library collects what is inside it": 1}


@torch.no_grad()
def test_a_copy_works_in_pieces_of_its_own() -> None:
    model, block = block_of("qwen3_moe")
    in_pieces(model, block, 3)
    other = copy.deepcopy(model)
    given = tiny.inputs("qwen3_moe", model)
    assert torch.equal(other(**given).logits, model(**given).logits)
    blocks = [list(row_blocks(one.model))[-1][1] for one in (model, other)]
    assert [pieces_of(one).calls for one in blocks] == [1, 1]  # type: ignore[union-attr]
    assert blocks[1].forward.__self__ is blocks[1]
