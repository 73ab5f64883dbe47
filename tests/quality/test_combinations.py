"""Pairs and triples on trained models do what is recorded of them: one cell in each run, all in `make verify`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from inference_pio.errors import ConflictError
from tests.compatibility import recorded
from tests.compatibility_page import key
from tests.quality.combinations import (
    EXACT,
    MOST_ALONE,
    NOTHING,
    WORKS,
    Bench,
    Cell,
    Plain,
    alone,
    pair_tried,
    together,
    triples,
    why_wrong,
)
from tests.quality.reference_models import NAMES as FAMILIES
from tests.sweep import NAMES, PAIRS, turn_of_this_commit


def one_in_turn(cells: Sequence[Any], others: Sequence[Sequence[str]]) -> list[Any]:
    """Each of many on each model: one of all in a commit's `make test`, the next in the next one's."""
    every = list(itertools.product(others, cells))
    stride = next(stride for stride in (7, 11, 13) if len(every) % stride)  # meets each, and neighbours are of one pair
    taken = turn_of_this_commit() * stride % len(every)
    return [
        pytest.param(*one, marks=[] if place == taken else pytest.mark.slow, id=f"{key(one[0])}-{one[1]}")
        for place, one in enumerate(every)
    ]


def hold(part: str, names: Sequence[str], family: str, found: Cell) -> None:
    """What was found is no wrong output, and near what is recorded."""
    told = Cell(**recorded()[part][key(names)][family])
    assert (found.kind, found.reason) == (told.kind, told.reason)
    if found.kind == WORKS:
        costs = [alone(name, family)[0].kl for name in names]
        assert why_wrong(names, found, costs, Plain.of(family).chance) is None
        assert found.kl <= 1.5 * told.kl + EXACT
        assert found.bytes_share == pytest.approx(told.bytes_share, rel=0.02)


@pytest.mark.parametrize(("pair", "family"), one_in_turn(FAMILIES, PAIRS))
def test_a_pair_is_the_same_however_it_is_reached_and_costs_what_is_recorded(
    pair: tuple[str, str], family: str
) -> None:
    hold("pairs", pair, family, pair_tried(pair, family))


@pytest.mark.parametrize(("names", "family"), one_in_turn(FAMILIES, triples()))
def test_three_of_a_profile_cost_what_is_recorded(names: tuple[str, ...], family: str) -> None:
    hold("triples", names, family, together(names, family))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_each_alone_costs_no_more_than_its_bound(name: str, family: str) -> None:
    found = alone(name, family)[0]
    assert found.kind == NOTHING or found.kl <= MOST_ALONE.get(name, EXACT)
    hold("alone", (name,), family, found)


def test_a_forbidden_pair_is_refused_in_either_order_and_leaves_the_first_as_it_was() -> None:
    pair = ("adaptive_sparse_attention", "sparse_attention")
    for first, second in (pair, pair[::-1]):
        bench = Bench("qwen3_moe")
        with pytest.raises(ConflictError, match=r"both claim 'attention\.pattern'.*keep one of them"):
            bench.apply(*pair)
        bench.check_untouched()
        bench.apply(first)
        said = bench.short()
        with pytest.raises(ConflictError, match="keep one of them"):
            bench.apply(second)
        assert bench.manager.get_model_optimizations(bench.model) == [first]
        assert torch.equal(bench.short(), said)
        bench.remove()
        bench.check_untouched()


def test_a_model_that_is_broken_is_found_to_be() -> None:
    """Weights that an optimization would have stored wrongly: one matrix is another's."""
    bench = Bench("qwen3_moe")
    bench.apply("tensor_compression")
    costs = [alone("tensor_compression", "qwen3_moe")[0].kl]
    assert why_wrong(["tensor_compression"], bench.measured(), costs, bench.plain.chance) is None
    layers = bench.model.model.layers
    layers[0].self_attn.o_proj, layers[1].self_attn.o_proj = layers[1].self_attn.o_proj, layers[0].self_attn.o_proj
    assert "allow" in str(why_wrong(["tensor_compression"], bench.measured(), costs, bench.plain.chance))
