"""A sidecar follows its store: what is written, cropped, grown, and taken in another order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.cache.sidecar import KeySidecar
from inference_pio.cache.span import Span
from inference_pio.cache.store import Kind, Store
from inference_pio.compat import has_triton
from inference_pio.kernels.page_summary import naive_page_summary
from tests.cache.test_store import KINDS, states


def follow_a_walk(kind: Kind, backend: str) -> None:
    """Writes, crops, growth, another order and padding; after each the sidecar is the plain summary."""
    store, span, length = Store(kind, 128), Span(), 0
    span.place(kind.device)
    sidecar = KeySidecar(store, span)
    assert sidecar.backend == backend

    def go_to(after: int) -> None:
        nonlocal length
        if after > length:
            store.write(*states(store.kind, after - length, seed=after), length)
        span.reach(after)
        sidecar.follow(store, length, after, span)
        length = after
        check()

    def check() -> None:
        wanted = naive_page_summary(store.scored, length, span.starts)
        for found, plain in zip(sidecar.tensors, (wanted.minimum, wanted.maximum, wanted.mean), strict=True):
            torch.testing.assert_close(found.float(), plain, rtol=1e-5, atol=1e-6)

    for after in (100, 101, 70, 128):
        go_to(after)
    store.grow(256, length)
    sidecar.grow(store)
    for after in (129, 200):
        go_to(after)
    rows = torch.tensor([1, 1, 0], device=kind.device)
    store.select(rows, length)
    sidecar.select(rows)
    check()
    go_to(0)
    span.pad(torch.tensor([3, 3, 0], dtype=torch.int32, device=kind.device))
    go_to(80)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_the_plain_summary_after_each_change(kind: Kind) -> None:
    follow_a_walk(kind, "torch")


@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_so_it_is_by_the_kernel(kind: Kind, interpreted: Callable[..., None]) -> None:
    interpreted(follow_a_walk, kind, "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_gpu_so_it_is_on_the_device(kind: Kind) -> None:
    follow_a_walk(kind._replace(device=torch.device("cuda", 0)), "triton")


def test_a_latent_is_summed_up_by_whole_rows() -> None:
    sidecar = KeySidecar(Store(KINDS["latent"], 128), Span())
    assert [tensor.shape for tensor in sidecar.tensors] == [(2, 1, 2, 22)] * 3
    assert sidecar.nbytes == 2 * 2 * 22 * (2 + 2 + 4)
