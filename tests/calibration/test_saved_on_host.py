"""Gradients of what waited on the host are the same bits, and only what the device would have held waits there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference_pio.calibration import saved_on_host as module
from inference_pio.calibration.output_pass import collect_outputs
from inference_pio.calibration.saved_on_host import SavedOnHost, saved_on_host
from inference_pio.calibration.source import CalibrationSource
from tests import tiny
from tests.calibration.test_narrowed import text

PATH = "model.layers.0.mlp.down_proj"


@pytest.fixture
def cpu_beside_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU's tensors were a device's, small ones too."""
    monkeypatch.setattr(module, "BESIDE_THE_HOST", frozenset({"cpu"}))
    monkeypatch.setattr(module, "LEAST_BYTES", 1)


def gradients(model: Any, ids: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[..., 7].sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.usefixtures("cpu_beside_the_host")
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_gradients_are_the_same_bits_and_weights_stay(name: str) -> None:
    model: Any = tiny.build(name)
    ids = torch.randint(1, 90, (2, 17), generator=torch.Generator().manual_seed(0))
    saved, weights = (
        list[Tensor](),
        {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())},
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one.detach()) or one, lambda one: one):
        wanted = gradients(model, ids)
    counted = SavedOnHost()
    with saved_on_host(model, counted):
        found = gradients(model, ids)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    away = [one for one in saved if one.untyped_storage().data_ptr() not in weights]
    away = [one for one in away if one.nbytes and (0 not in one.stride() or one.numel() == 1)]
    assert 0 < len(away) < len(saved)
    assert (counted.tensors, counted.nbytes) == (len(away), sum(one.nbytes for one in away))


@pytest.mark.usefixtures("cpu_beside_the_host")
def test_what_is_saved_lies_in_other_memory_as_it_lay() -> None:
    x = torch.randn(6, 5, 4, requires_grad=True)
    with saved_on_host(nn.Identity(), SavedOnHost()):
        turned, part = x.transpose(0, 1).exp(), x[:, 1:3].square()
    kept: Tensor = turned.grad_fn._saved_result  # type: ignore[union-attr]
    assert kept.data_ptr() != turned.data_ptr()
    assert kept.stride() == turned.stride() == (4, 20, 1)
    assert torch.equal(kept, turned)
    kept = part.grad_fn._saved_self  # type: ignore[union-attr]
    assert kept.stride() == x[:, 1:3].stride() == (20, 4, 1)
    assert torch.equal(kept, x[:, 1:3])


def test_tensors_of_the_host_small_ones_and_repeated_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(x: Tensor) -> int:
        counted = SavedOnHost()
        with saved_on_host(nn.Identity(), counted):
            (x.requires_grad_() * x.detach()).sum().backward()
        return counted.tensors

    assert moved(torch.randn(2**19)) == 0
    monkeypatch.setattr(module, "BESIDE_THE_HOST", frozenset({"cpu"}))
    assert moved(torch.randn(2**19)) > 0
    assert moved(torch.randn(2**17)) == 0
    assert moved(torch.randn(4, 2**18)[:1].expand(2, 2**18)) == 0


def without_room(gradient: Tensor) -> None:
    raise torch.OutOfMemoryError("none left")


class Small(nn.Module):
    """On a device without room for a backward pass, so many times: chance has been asked by then."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.layer, self.failures, self.calls = nn.Linear(6, 5), failures, 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        made: Tensor = self.layer(input).exp()
        if self.failures:
            self.failures -= 1
            made.register_hook(without_room)
        return made.tanh()


def rows() -> CalibrationSource:
    chance = torch.Generator().manual_seed(3)
    return CalibrationSource("rows", tuple({"input": torch.randn(8, 6, generator=chance)} for _ in range(3)))


@pytest.mark.usefixtures("cpu_beside_the_host")
def test_without_room_a_batch_is_tried_once_more_with_the_same_chance() -> None:
    model, saved = Small(0), SavedOnHost()
    wanted = collect_outputs(model, rows(), ["layer"], saved=saved)["layer"]
    assert (model.calls, saved) == (3, SavedOnHost())
    model.failures, model.calls = 1, 0
    found = collect_outputs(model, rows(), ["layer"], saved=saved)["layer"]
    assert torch.equal(found, wanted)
    assert (model.calls, saved.wanted) == (4, True)
    once = saved.nbytes
    assert once > 0
    assert torch.equal(collect_outputs(model, rows(), ["layer"], saved=saved)["layer"], wanted)
    assert (model.calls, saved.nbytes) == (7, 2 * once)  # the others go there at once


@pytest.mark.usefixtures("cpu_beside_the_host")
def test_where_that_is_not_enough_the_error_is_the_librarys() -> None:
    model = Small(2)
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        collect_outputs(model, rows(), ["layer"])
    assert model.calls == 2


@pytest.mark.usefixtures("cpu_beside_the_host")
def test_a_decoder_is_learned_from_alike() -> None:
    model, saved = tiny.build("llama"), SavedOnHost(wanted=True)
    found = collect_outputs(model, text(4), [PATH], saved=saved)[PATH]
    assert torch.equal(found, collect_outputs(model, text(4), [PATH])[PATH])
    assert saved.nbytes > 0


@pytest.mark.gpu
def test_on_a_gpu_less_of_its_memory_is_held() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.Tanh()) for _ in range(8))).cuda()
    x = torch.randn(2**15, 512, device="cuda", requires_grad=True)

    def rise(*, on_host: bool) -> tuple[int, Tensor]:
        counted, before = SavedOnHost(), torch.cuda.memory_allocated()
        if on_host:
            with saved_on_host(model, counted):
                loss = model(x).sum()
        else:
            loss = model(x).sum()
        held = torch.cuda.memory_allocated() - before
        (gradient,) = torch.autograd.grad(loss, [x])
        return held, gradient

    (held, wanted), (less, found) = rise(on_host=False), rise(on_host=True)
    assert less < 0.1 * held
    assert torch.equal(found, wanted)
