"""A store of codes holds what a layer of the cache holds, token after token, and stays where it is."""

from __future__ import annotations

import pytest
import torch

from inference_pio.cache.coded_layer import RECENT, CodedLayer
from inference_pio.cache.coded_store import ROOM, CodedStore
from inference_pio.cache.kv_format import KV_FORMATS
from inference_pio.cache.store import Kind
from inference_pio.kernels.coded_decode import naive_coded_decode
from inference_pio.kernels.decode_attention import naive_decode_attention
from inference_pio.kernels.triton.launch import PAGE

EACH = pytest.mark.parametrize("kv_format", KV_FORMATS)
KIND = Kind(2, 3, 32, 3, 32, torch.float32, torch.device("cpu"))


def states(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, tokens, 32, generator=torch.Generator().manual_seed(seed))


def read(kv_format: str, tokens: int) -> CodedLayer:
    layer = CodedLayer(kv_format)
    layer.update(states(tokens), states(tokens, 1))
    return layer


def seated(kv_format: str, tokens: int, capacity: int = 512) -> CodedStore:
    store = CodedStore(KIND, kv_format, capacity)
    store.seat(read(kv_format, tokens))
    return store


def held_by(layer: CodedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer tells of all its tokens, with one more that it is asked about."""
    keys, values = layer.update(states(1, 9), states(1, 10))
    return keys[:, :, :-1], values[:, :, :-1]


@EACH
@pytest.mark.parametrize("tokens", [1, 64, 127, 128, 200, 333])
def test_what_was_read_is_held_as_the_layer_held_it(kv_format: str, tokens: int) -> None:
    store, wanted = seated(kv_format, tokens), held_by(read(kv_format, tokens))
    assert store.count == max(0, tokens - RECENT) // PAGE
    for found, expected in zip(store.views(tokens), wanted, strict=True):
        assert torch.equal(found, expected)


@EACH
def test_tokens_that_come_one_by_one_are_coded_as_by_the_layer_and_nothing_moves(kv_format: str) -> None:
    store, layer, held = seated(kv_format, 70), read(kv_format, 70), 70
    places = [part.data_ptr() for side in store.pages for part in side.parts] + [one.data_ptr() for one in store.recent]
    for step in range(200):
        new = states(1, 20 + step), states(1, 300 + step)
        if held - PAGE * store.count >= RECENT + PAGE:
            store.code_a_page()
        for tensor, one in zip((store.keys, store.values), new, strict=True):
            tensor[:, held - PAGE * store.count] = one[:, :, 0]
        held += 1
        for found, expected in zip(store.views(held), layer.update(*new), strict=True):
            assert torch.equal(found, expected)
    assert store.count == 3
    assert places == [part.data_ptr() for side in store.pages for part in side.parts] + [
        one.data_ptr() for one in store.recent
    ]


@EACH
def test_a_layer_that_is_handed_over_goes_on_as_if_it_had_read_all(kv_format: str) -> None:
    store, layer = seated(kv_format, 250), CodedLayer(kv_format)
    store.hand_over(layer, 250)
    kept = [part.clone() for side in layer.pages for part in side.parts]
    store.code_a_page()
    assert all(map(torch.equal, kept, [part for side in layer.pages for part in side.parts]))
    whole = read(kv_format, 250)
    assert layer.get_seq_length() == whole.get_seq_length() == 250
    for found, expected in zip(held_by(layer), held_by(whole), strict=True):
        assert torch.equal(found, expected)


@EACH
def test_room_may_grow_and_holds_what_it_held(kv_format: str) -> None:
    store = seated(kv_format, 300, capacity=256)
    before = [part.clone() for part in store.views(300)]
    store.reserve(1024)
    assert store.pages[0].capacity == 16
    assert all(map(torch.equal, store.views(300), before))
    assert store.nbytes == sum(part.nbytes for side in store.pages for part in side.parts) + 2 * 2 * 3 * ROOM * 32 * 4


def test_a_kernel_is_shown_the_same_numbers() -> None:
    store, query = seated("int8", 210), torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(5))
    view, lengths = store.view(torch.tensor([store.count], dtype=torch.int32)), torch.tensor([210], dtype=torch.int32)
    keys, values = (one.transpose(1, 2) for one in store.views(210))
    wanted = naive_decode_attention(query, keys, values, lengths)
    torch.testing.assert_close(naive_coded_decode(query, view, lengths), wanted)


def test_a_layer_that_was_taken_over_is_empty() -> None:
    layer = read("int8", 200)
    CodedStore(KIND, "int8", 256).seat(layer)
    assert (layer.get_seq_length(), layer.nbytes) == (0, 0)
