from __future__ import annotations

import copy

from torch import nn

from inference_pio.anatomy.pieces import PIECES, Pieces, pieces_of, whole_calls


def test_what_is_counted_is_told() -> None:
    pieces = Pieces(4)
    pieces.cut(3)
    pieces.left["because"] += 1
    assert pieces.to_json() == {"calls": 1, "pieces": 3, "left_whole": {"because": 1}}


def test_a_copy_of_a_module_counts_its_own_calls() -> None:
    module = nn.ReLU()
    module.__dict__[PIECES] = Pieces(4)
    module.__dict__[PIECES].cut(2)
    other = pieces_of(copy.deepcopy(module))
    assert other is not None
    assert (other.tokens, other.calls) == (4, 0)


def test_inside_a_block_of_whole_calls_nothing_works_in_pieces() -> None:
    module = nn.ReLU()
    assert pieces_of(module) is None
    module.__dict__[PIECES] = Pieces(4)
    with whole_calls():
        assert pieces_of(module) is None
    assert pieces_of(module) is module.__dict__[PIECES]
