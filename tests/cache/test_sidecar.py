"""A sidecar follows its store: what is written, cropped, grown, and taken in another order."""

from __future__ import annotations

import pytest
import torch

from inference_pio.cache.sidecar import KeySidecar
from inference_pio.cache.span import Span
from inference_pio.cache.store import Kind, Store
from inference_pio.kernels.page_summary import naive_page_summary
from tests.cache.test_store import KINDS, states


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_the_plain_summary_after_each_change(kind: Kind) -> None:
    store, span, length = Store(kind, 128), Span(), 0
    sidecar = KeySidecar(store)

    def go_to(after: int) -> None:
        nonlocal length
        if after > length:
            store.write(*states(store.kind, after - length, seed=after), length)
        sidecar.follow(store, length, after, span)
        length = after

    def check() -> None:
        wanted = naive_page_summary(store.scored, length, span.starts)
        for found, plain in zip(sidecar.tensors, (wanted.minimum, wanted.maximum, wanted.mean), strict=True):
            torch.testing.assert_close(found.float(), plain, rtol=1e-6, atol=1e-6)

    for after in (100, 101, 70, 128):
        go_to(after)
        check()
    store.grow(256, length)
    sidecar.grow(store)
    for after in (129, 200):
        go_to(after)
        check()
    rows = torch.tensor([1, 1, 0])
    store.select(rows, length)
    sidecar.select(rows)
    check()
    span.pad(torch.tensor([3, 3, 0], dtype=torch.int32))
    go_to(0)
    go_to(80)
    check()


def test_a_latent_is_summed_up_by_whole_rows() -> None:
    sidecar = KeySidecar(Store(KINDS["latent"], 128))
    assert [tensor.shape for tensor in sidecar.tensors] == [(2, 1, 2, 22)] * 3
    assert sidecar.nbytes == 2 * 2 * 22 * (2 + 2 + 4)
