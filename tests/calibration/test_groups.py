from __future__ import annotations

from torch import nn

from inference_pio.anatomy.walk import experts
from inference_pio.calibration.groups import Watched, groups_within
from inference_pio.calibration.input_statistics import statistics_bytes
from tests import tiny


def watched(*places: tuple[str, str, int]) -> list[Watched]:
    return [Watched(path, nn.Linear(width, 2), role) for path, role, width in places]


def test_groups_follow_the_order_and_fit() -> None:
    one = statistics_bytes(8, True)
    layers = watched(*((f"{n}.a", "x", 8) for n in range(5)))
    groups = list(groups_within(layers, True, 2 * one))
    assert [[layer.path for layer in group] for group in groups] == [["0.a", "1.a"], ["2.a", "3.a"], ["4.a"]]


def test_siblings_of_one_role_count_once() -> None:
    one = statistics_bytes(8, True)
    layers = watched(("0.q", "qkv", 8), ("0.k", "qkv", 8), ("0.v", "qkv", 8), ("0.o", "out", 8))
    assert [len(group) for group in groups_within(layers, True, one)] == [3, 1]


def test_one_layer_is_a_group_even_where_it_is_too_large() -> None:
    assert [len(group) for group in groups_within(watched(("a", "x", 8), ("b", "x", 9)), True, 1)] == [1, 1]


def test_experts_count_for_each_of_their_stacks() -> None:
    path, module, role = next(experts(tiny.build("qwen3_moe")))
    assert Watched(path, module, role).widths == (64, 48) * 8
