"""The oldest give up their slots, and nothing else does."""

from __future__ import annotations

import random

from inference_pio.streaming.last_chosen import LastChosen


def test_the_one_that_was_chosen_longest_ago_makes_room() -> None:
    kept = LastChosen(3)
    assert kept.place([4, 5, 6]) == {4: 0, 5: 1, 6: 2}
    kept.use([4])
    assert kept.place([7]) == {7: 1}
    assert [one in kept for one in (4, 5, 6, 7)] == [True, False, True, True]
    assert kept.table(8) == [3, 3, 3, 3, 0, 3, 2, 1, 3]


def test_what_is_dropped_leaves_its_slot_to_the_next() -> None:
    kept = LastChosen(2)
    kept.place([1, 2])
    kept.drop([1])
    assert (len(kept), kept.free) == (1, 1)
    assert kept.place([3]) == {3: 0}
    assert kept[2] == 1


def test_it_keeps_what_a_plain_list_would_keep() -> None:
    order, kept, rng = list[int](), LastChosen(5), random.Random(0)
    for _ in range(300):
        chosen = rng.sample(range(12), rng.randint(1, 5))
        here, missing = [one for one in chosen if one in order], [one for one in chosen if one not in order]
        kept.use(here)
        kept.place(missing)
        order = ([one for one in order if one not in here] + here + missing)[-5:]
        assert {one for one in range(12) if one in kept} == set(order)
        assert len({kept[one] for one in order}) == len(order)
