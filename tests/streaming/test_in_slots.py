"""Modules of experts compute by whatever forward they have, with what is in slots, and are left as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import StreamError
from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.memory.disk_offloading import DiskOffloading
from inference_pio.streaming.device_slot import Device
from inference_pio.undo.fingerprint import fingerprint
from tests.kernels.test_few_experts import put_on_a_gpu
from tests.kernels.triton.conftest import interpreted
from tests.streaming.in_slots import cpu_beside_the_host, put, slots_of
from tests.streaming.mixture import mixture

pytestmark = pytest.mark.usefixtures("cpu_beside_the_host")
__all__ = ["cpu_beside_the_host", "interpreted"]
COMPRESSION = "tensor_compression"


def experts_of(model: Any, layer: int = 1) -> Any:
    return model.model.layers[layer].mlp.experts


def call(model: Any, index: torch.Tensor, *, by_name: bool = False, layer: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(index), 64, generator=generator)
    weights = torch.rand(index.shape, generator=generator)
    with torch.no_grad():
        if by_name:
            found: torch.Tensor = experts_of(model, layer)(x, top_k_index=index, top_k_weights=weights)
        else:
            found = experts_of(model, layer)(x, index, weights)
    return found


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        ("eager", torch.int64),  # whose one_hot takes no other
        *((name, dtype) for name in ("grouped_mm", "batched_mm") for dtype in (torch.int64, torch.int32)),
    ],
)
def test_by_place_and_by_name_in_every_way(implementation: str, dtype: torch.dtype) -> None:
    model = mixture(layers=8)
    model.set_experts_implementation(implementation)
    indices = [torch.tensor([[15, 3, 7, 1]]), torch.tensor([[3, 0], [15, 7]]), torch.arange(128).view(64, 2) % 16]
    indices = [index.to(dtype) for index in indices]
    expected = [call(model, index) for index in indices]
    put(model)
    assert slots_of(model).capacity >= 4
    for _ in range(2):
        for index, result in zip(indices, expected, strict=True):
            assert torch.equal(call(model, index), result)
            assert torch.equal(call(model, index, by_name=True), result)


def test_a_long_index_with_few_experts_is_moved_on_the_device() -> None:
    model = mixture(layers=2)
    index = torch.tensor([[3, 15]]).repeat(200, 1)
    expected = call(model, index)
    put(model)
    assert torch.equal(call(model, index), expected)
    assert slots_of(model).in_slots.calls == 1


def test_what_a_failed_copy_wrote_over_is_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture(layers=2)
    index = torch.arange(128).view(64, 2) % 16
    expected = call(model, index)
    put(model)
    call(model, index)
    real = Device.copy

    def broken(self: Device, pairs: Any) -> None:
        real(self, pairs)
        raise torch.OutOfMemoryError("the device has gone")

    with monkeypatch.context() as patch:
        patch.setattr(Device, "copy", broken)
        with pytest.raises(StreamError, match="could not be copied"):
            call(model, index, layer=0)
    assert torch.equal(call(model, index), expected)


def test_the_module_itself_shows_no_numbers_and_keeps_its_count() -> None:
    model = mixture(layers=2)
    before = fingerprint(model)
    manager = put(model)
    call(model, torch.tensor([[1, 2]]))
    experts = experts_of(model)
    assert experts.num_experts == 16
    assert all(one.shape[0] == 16 and bool(one.isnan().all()) for one in experts.parameters())
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def through_the_kernels(format: str) -> dict[str, int]:
    """Experts of codes in slots, by the kernels that a GPU would run: what was read for three calls of two layers."""
    model = mixture(layers=8)
    asked = {"format": format, "targets": ["experts"]} | ({"group_size": 32} if format == "int4" else {})
    ModularOptimizationManager().apply_optimizations(model, ["tensor_compression"], parameters={COMPRESSION: asked})
    indices = [torch.tensor([[15, 3]]), torch.tensor([[3, 15], [0, 15]]), torch.tensor([[16, 3], [3, 3]])]
    expected = [call(model, index, layer=layer) for layer in (1, 2) for index in indices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskOffloading, "beside_the_host", frozenset({"cuda", "cpu"}))
        put(model, "92%")
        put_on_a_gpu(patch)
        patch.setattr(CompressedExperts, "_expert_by_expert", None)
        found = [call(model, index, layer=layer) for layer in (1, 2) for index in indices]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)
        return vars(slots_of(model).in_slots)


@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
def test_what_the_kernels_read_is_in_slots_and_counted(interpreted: Callable[..., Any]) -> None:
    counted = interpreted(through_the_kernels, "int8")
    assert {name: counted[name] for name in ("calls", "hits", "misses")} == {"calls": 6, "hits": 6, "misses": 6}
    assert counted["copied_bytes"] == 6 * (3 * 64 * 48 + 2 * (2 * 48 + 64))
