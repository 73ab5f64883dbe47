"""A store keeps what was written, wherever its allocations move, and hands out views of it."""

from __future__ import annotations

import pytest
import torch

from inference_pio.cache.store import Kind, Store, bucket

CPU = torch.device("cpu")
KINDS = {
    "grouped": Kind(2, 3, 8, 3, 8, torch.bfloat16, CPU),
    "narrow values": Kind(2, 4, 12, 4, 5, torch.float32, CPU),
    "one head": Kind(3, 1, 8, 1, 8, torch.float32, CPU),
    "latent": Kind(2, 1, 16, 1, 6, torch.bfloat16, CPU),
}


def states(kind: Kind, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (kind.key_heads, tokens, kind.key_width), (kind.value_heads, tokens, kind.value_width)
    keys, values = (torch.randn(kind.batch, *shape, generator=generator) for shape in shapes)
    return keys.to(kind.device, kind.dtype), values.to(kind.device, kind.dtype)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_views_are_what_was_written_through_growth(kind: Kind) -> None:
    store, (keys, values) = Store(kind, 64), states(kind, 130)
    store.write(keys[:, :, :63], values[:, :, :63], 0)
    store.grow(192, 63)
    assert store.capacity == 192
    store.write(keys[:, :, 63:], values[:, :, 63:], 63)
    for found, wanted in zip(store.views(130), (keys, values), strict=True):
        assert torch.equal(found, wanted)
    assert not store.keys[:, 130:].any()


def test_tokens_lie_one_after_the_other_and_views_copy_nothing() -> None:
    store = Store(KINDS["grouped"], 64)
    assert [tensor.shape for tensor in store.tensors] == [(2, 64, 3, 8)] * 2
    assert all(tensor.is_contiguous() for tensor in store.tensors)
    keys, values = store.views(10)
    assert (keys.data_ptr(), values.data_ptr()) == tuple(tensor.data_ptr() for tensor in store.tensors)
    assert store.nbytes == 2 * 2 * 64 * 3 * 8 * 2


def test_a_latent_lies_beside_its_rotated_part_in_one_row_a_token() -> None:
    kind = KINDS["latent"]
    store, (latent, rotated) = Store(kind, 64), states(kind, 5)
    store.write(latent, rotated, 0)
    (rows,) = store.tensors
    assert rows.shape == (2, 64, 1, 22)
    assert torch.equal(rows[:, :5], torch.cat([latent, rotated], -1).transpose(1, 2))
    assert store.scored is rows
    assert not KINDS["one head"].is_latent


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("rows", [[0, 1], [1, 1], [1, 0], [1], [0, 0, 0, 1, 1, 1]], ids=str)
def test_rows_are_taken_in_the_asked_order(kind: Kind, rows: list[int]) -> None:
    kind = kind._replace(batch=2)
    store, (keys, values) = Store(kind, 64), states(kind, 20)
    store.write(keys, values, 0)
    places = [tensor.data_ptr() for tensor in store.tensors]
    store.select(torch.tensor(rows), 20)
    for found, wanted in zip(store.views(20), (keys, values), strict=True):
        assert torch.equal(found, wanted[rows])
    assert store.kind.batch == len(rows)
    assert ([tensor.data_ptr() for tensor in store.tensors] == places) == (len(rows) == 2)


def test_a_store_made_in_inference_mode_is_written_outside_of_it() -> None:
    kind = KINDS["grouped"]
    with torch.inference_mode():
        store = Store(kind, 64)
        store.write(*states(kind, 3), 0)
        store.grow(128, 3)
    store.write(*states(kind, 2, seed=1), 3)
    assert torch.equal(store.views(5)[0][:, :, 3:], states(kind, 2, seed=1)[0])


def test_buckets_are_whole_pages_that_hold_what_was_asked_and_double() -> None:
    capacities = [bucket(tokens) for tokens in range(5000)]
    assert all(capacity >= tokens and capacity % 64 == 0 for tokens, capacity in enumerate(capacities))
    assert sorted(set(capacities)) == [256, 512, 1024, 2048, 4096, 8192]
