"""One layer answers as the library's does, and refuses what it would get wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicLayer

from inference_pio.cache import PagedLayer, Span
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.page_summary import naive_page_summary
from tests.cache.test_store import KINDS, states

KIND = KINDS["grouped"]


def check(layer: PagedLayer, theirs: DynamicLayer) -> None:
    """The layer holds what the library's layer holds, and says so on the host, on the device and in its sidecar."""
    assert theirs.keys is not None
    assert layer.keys is not None
    assert torch.equal(layer.keys, theirs.keys)
    assert torch.equal(layer.values, theirs.values)
    length = theirs.get_seq_length()
    assert layer.get_seq_length() == layer.keys.shape[2] == length
    assert layer.get_mask_sizes(3) == theirs.get_mask_sizes(3)
    assert layer.get_max_length() == theirs.get_max_length() == -1
    assert layer.span.length is not None
    assert layer.span.length.tolist() == [length]
    assert layer.store is not None
    if layer.sidecar:
        wanted = naive_page_summary(layer.store.scored, length, layer.span.starts)
        for found, plain in zip(layer.sidecar.tensors, (wanted.minimum, wanted.maximum, wanted.mean), strict=True):
            torch.testing.assert_close(found.float(), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("first", [1, 63, 64, 65, 129, 256, 257])
def test_it_holds_what_the_librarys_layer_holds(kind: str, first: int) -> None:
    layer, theirs = PagedLayer(Span(), sidecars=True), DynamicLayer()
    for seed, tokens in enumerate((first, 1, 1, 63, 1, 130)):
        given = states(kind, tokens, seed)
        for found, wanted in zip(layer.update(*given), theirs.update(*given), strict=True):
            assert torch.equal(found, wanted)
        check(layer, theirs)
    for change in (-1, -70, 0):
        layer.crop(change)
        theirs.crop(change)
        check(layer, theirs)
    for name, given in (
        ("reorder_cache", torch.tensor([1, 0, 0][: kind.batch])),
        ("batch_repeat_interleave", 3),
        ("batch_select_indices", torch.tensor([4, 0, 0, 1])),
    ):
        getattr(layer, name)(given)
        getattr(theirs, name)(given)
        check(layer, theirs)
    given = states(kind._replace(batch=4), 2, 99)
    layer.update(*given)
    theirs.update(*given)
    check(layer, theirs)


def test_a_boolean_selection_is_served_as_the_library_serves_it() -> None:
    layer = PagedLayer(Span())
    keys, _ = layer.update(*states(KIND, 5))
    wanted = keys[1:].clone()
    layer.batch_select_indices(torch.tensor([False, True]))
    assert torch.equal(layer.keys, wanted)


def test_growing_is_paid_once_per_doubling_and_reserved_room_moves_nothing() -> None:
    layer, places = PagedLayer(Span()), set()
    for _ in range(1025):
        layer.update(*states(KIND, 1))
        places.add(layer.store.tensors[0].data_ptr())
    assert len(places) <= 4
    assert layer.capacity == 2048

    layer = PagedLayer(Span(), capacity=1000)
    keys, _ = layer.update(*states(KIND, 1))
    assert layer.capacity == 1024
    for _ in range(1023):
        later, _ = layer.update(*states(KIND, 1))
    assert later.data_ptr() == keys.data_ptr()
    layer.reserve(1500)
    assert layer.capacity == 1536
    assert layer.keys.data_ptr() != keys.data_ptr()
    assert torch.equal(layer.keys, later)


def test_a_reset_keeps_the_room_and_takes_other_rows() -> None:
    layer = PagedLayer(Span(), sidecars=True)
    layer.update(*states(KIND, 100))
    place = layer.store.tensors[0].data_ptr()
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.span.length.tolist() == [0]
    keys, _ = layer.update(*states(KIND, 3, seed=5))
    assert keys.data_ptr() == place
    assert torch.equal(keys, states(KIND, 3, seed=5)[0])
    layer.reset()
    wider = KIND._replace(batch=5, dtype=torch.float32)
    assert torch.equal(layer.update(*states(wider, 7))[0], states(wider, 7)[0])
    assert layer.sidecar.summary.mean.shape[0] == 5


def test_a_copy_is_its_own() -> None:
    layer = PagedLayer(Span(), sidecars=True)
    layer.update(*states(KINDS["latent"], 70))
    other = copy.deepcopy(layer)
    kept = layer.keys.clone()
    other.crop(-20)
    other.update(*states(KINDS["latent"], 50, seed=1))
    assert torch.equal(layer.keys, kept)
    assert layer.span.length.tolist() == [70]
    assert other.span.length.tolist() == [100]
    assert other.keys.data_ptr() == other.store.tensors[0].data_ptr()
    summary = naive_page_summary(other.store.scored, 100)
    assert torch.equal(other.sidecar.summary.maximum.float(), summary.maximum)


def test_what_it_would_get_wrong_is_refused() -> None:
    layer = PagedLayer(Span())
    layer.crop(-1)
    layer.update(*states(KIND, 5))
    with pytest.raises(InvalidSetting, match="crop\\(3 - cache"):
        layer.crop(3)
    with pytest.raises(InvalidSetting, match="DynamicCache\\(offloading=True\\)"):
        layer.offload()
    layer.prefetch()
    for other in (KIND._replace(batch=1), KIND._replace(dtype=torch.float32), KIND._replace(key_width=1)):
        with pytest.raises(InvalidSetting, match="the cache holds 5 tokens of"):
            layer.update(*states(other, 1))
    keys, values = states(KIND, 1)
    with pytest.raises(InvalidSetting, match=r"under torch\.no_grad"):
        layer.update(keys.requires_grad_(), values)
    with torch.no_grad():
        layer.update(keys, values)
    assert layer.get_seq_length() == 6


def test_the_padding_of_other_rows_is_refused() -> None:
    span = Span()
    span.pad(torch.tensor([0, 1, 0], dtype=torch.int32))
    with pytest.raises(InvalidSetting, match="padding of 3 rows, and 2 arrive"):
        PagedLayer(span).update(*states(KIND, 5))


def test_early_initialization_makes_the_store() -> None:
    layer = PagedLayer(Span())
    empty = states(KIND, 0)
    layer.lazy_initialization(*empty)
    assert layer.is_initialized
    assert layer.get_seq_length() == 0
    assert torch.equal(layer.update(*states(KIND, 2))[0], states(KIND, 2)[0])
