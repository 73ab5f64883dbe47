from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.measure import memory
from inference_pio.measure.memory import peak_bytes, resident_bytes, weight_bytes
from tests.tiny import build

CPU = torch.device("cpu")
MIB = 2**20


def test_every_parameter_and_buffer_counts_with_its_own_width():
    module = nn.Linear(8, 4, bias=True, dtype=torch.bfloat16)
    module.register_buffer("scale", torch.ones(4, dtype=torch.float64))
    assert weight_bytes(module) == (8 * 4 + 4) * 2 + 4 * 8


def test_ties_count_once():
    model = build("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert weight_bytes(model) == sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.detach())  # another Parameter on the same bytes
    tied = weight_bytes(model)
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.detach().clone())
    assert weight_bytes(model) == tied + model.lm_head.weight.nbytes


def test_views_into_one_storage_count_the_storage_once():
    merged = torch.zeros(6, 8)
    module = nn.Module()
    module.query, module.key = nn.Parameter(merged[:4]), nn.Parameter(merged[4:])
    assert weight_bytes(module) == 6 * 8 * 4


def test_what_is_only_on_the_meta_device_weighs_nothing():
    assert weight_bytes(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(100, 100, device="meta"))) == 64


def test_a_wrapper_tensor_weighs_what_is_inside_it():
    class Packed(torch.Tensor):
        """A 4 x 4 tensor that looks like float32 and holds int8 values and a scale."""

        @staticmethod
        def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Packed:
            return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

        def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
            self.values, self.scale = values, scale

        def __tensor_flatten__(self) -> tuple[list[str], Any]:
            return ["values", "scale"], None

        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.detach.default:
                return Packed(args[0].values, args[0].scale)
            raise NotImplementedError(function)

    module = nn.Module()
    module.weight = nn.Parameter(Packed(torch.zeros(4, 4, dtype=torch.int8), torch.ones(4)), requires_grad=False)
    assert weight_bytes(module) == 16 + 16


def test_resident_bytes_are_weights_and_what_is_held():
    model = build("llama")
    assert resident_bytes(model, held_bytes=1000) == weight_bytes(model) + 1000


def grow_by(size: int) -> None:
    torch.ones(size, dtype=torch.uint8)  # touched, and given back at once


@pytest.mark.parametrize("permitted", [True, False])
def test_the_peak_of_a_block_is_seen_although_it_was_given_back(permitted, monkeypatch):
    if not permitted:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    with peak_bytes(CPU) as peak:
        for _ in range(1 if permitted else 8):  # a sampler needs some luck to see one
            grow_by(200 * MIB)
    assert 190 * MIB < peak.peak_bytes - peak.start_bytes < 260 * MIB
    assert ("sampled every 5 ms" in peak.method) is not (permitted and memory._reset_high_water_mark())


def test_an_earlier_higher_peak_does_not_count():
    if not memory._reset_high_water_mark():
        pytest.skip("this kernel does not let a process reset its high-water mark")
    grow_by(300 * MIB)
    with peak_bytes(CPU) as peak:
        grow_by(50 * MIB)
    assert 45 * MIB < peak.peak_bytes - peak.start_bytes < 100 * MIB


def test_the_peak_is_filled_in_when_the_block_fails():
    with pytest.raises(ZeroDivisionError), peak_bytes(CPU) as peak:
        raise ZeroDivisionError
    assert peak.peak_bytes > 0


def test_where_the_mark_cannot_be_reset_a_thread_samples(monkeypatch):
    def refuse(self: Path, text: str) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert not memory._reset_high_water_mark()


def test_a_reset_that_does_nothing_is_found_out(monkeypatch):
    sizes = {"VmHWM": 900 * MIB, "VmRSS": 500 * MIB}
    monkeypatch.setattr(memory, "_status_bytes", sizes.__getitem__)
    assert not memory._reset_high_water_mark()


def test_the_json_says_how_the_peak_was_read():
    assert set(memory.Peak("guessing is not a method", 3, 5).to_json()) == {"method", "start_bytes", "rise_bytes"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_peak_on_cuda_is_the_allocators():
    device = torch.device("cuda")
    held = torch.ones(10 * MIB, dtype=torch.uint8, device=device)
    torch.ones(500 * MIB, dtype=torch.uint8, device=device)
    with peak_bytes(device) as peak:
        torch.ones(200 * MIB, dtype=torch.uint8, device=device)
    assert peak.peak_bytes - peak.start_bytes == 200 * MIB
    assert peak.start_bytes >= held.nbytes
    assert peak.method == "torch.cuda.max_memory_allocated"
