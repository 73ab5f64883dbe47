"""By what a call is served, and when a captured prompt goes to another kernel than one that is called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy import served as room
from inference_pio.anatomy.exact_attention import exact_attention
from inference_pio.anatomy.served import Served
from inference_pio.compat import has_warp_roles
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.attention_choice import CUDNN, FUSED, TRITON, Phase
from inference_pio.kernels.attention_serving import Serving, choose_serving

CALLED, CAPTURED = Phase.PREFILL, Phase.CAPTURED_PREFILL
APART = {CALLED: ((0, CUDNN), (40, TRITON)), CAPTURED: ((0, CUDNN), (8, TRITON))}
GPU = torch.device("cuda", 0)


class Prompt:
    """As much of a tensor on a GPU as is asked."""

    def __init__(self, keys: int, device: torch.device = GPU) -> None:
        self.shape, self.dtype, self.device, self.requires_grad = (1, 2, keys, 16), torch.float16, device, False

    def detach(self) -> Prompt:
        return self


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whether it captures, and what was launched."""
    found = SimpleNamespace(captures=False, launches=[])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: found.captures)
    monkeypatch.setattr(room, "run", lambda backend, phase, query, *_: found.launches.append((backend, query.device)))
    return found


def phase_of(served: Served, keys: int, device: torch.device = GPU) -> Phase:
    prompt: Any = Prompt(keys, device)
    return served.prompt(prompt, prompt, prompt)


def test_a_captured_prompt_is_one_of_its_own_where_its_kernel_was_launched_before(machine: Any) -> None:
    served = Served(Serving(APART), torch.float16, 16, 16)
    assert served.captured_apart == (8, 40)
    machine.captures = True
    assert phase_of(served, 8) is CALLED  # a kernel cannot be loaded while a graph is captured
    machine.captures = False
    assert [phase_of(served, keys) for keys in (7, 8, 39, 40)] == [CALLED] * 4
    assert machine.launches == [(TRITON, GPU)]
    machine.captures = True
    assert [phase_of(served, keys) for keys in (7, 8, 39, 40)] == [CALLED, CAPTURED, CAPTURED, CALLED]
    assert phase_of(served, 8, torch.device("cuda", 1)) is CALLED
    assert machine.launches == [(TRITON, GPU)]


def test_what_was_not_checked_is_not_launched(machine: Any) -> None:
    assert phase_of(Served(Serving(APART), torch.bfloat16, 16, 16), 8) is CALLED
    assert phase_of(Served(Serving(APART), torch.float16, 32, 32), 8) is CALLED
    assert machine.launches == []


@pytest.mark.parametrize(
    "steps", [{}, {CALLED: APART[CAPTURED], CAPTURED: APART[CAPTURED]}, {CALLED: APART[CALLED]}], ids=str
)
def test_where_both_go_to_one_kernel_nobody_asks(steps: Any, machine: Any) -> None:
    served = Served(Serving(steps), torch.float16, 16, 16)
    assert served.captured_apart is None
    machine.captures = True
    assert phase_of(served, 20) is CALLED
    assert machine.launches == []


def test_what_is_compiled_is_traced_where_nobody_can_ask(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert phase_of(Served(Serving(APART), torch.float16, 16, 16), 8) is CALLED
    assert machine.launches == []


def test_other_tensors_than_were_checked_get_torchs_own_choice() -> None:
    served = Served(Serving({CALLED: ((0, CUDNN),)}), torch.float16, 16, 16)
    tensor = torch.zeros(1, 2, 5, 16, dtype=torch.float16)
    assert served.backend(CALLED, tensor, tensor, tensor, 0.0) == CUDNN
    assert served.backend(CALLED, tensor.bfloat16(), tensor, tensor, 0.0) == FUSED
    assert served.backend(CALLED, tensor, tensor, tensor[..., :8], 0.0) == FUSED


@pytest.mark.gpu
@pytest.mark.skipif(not has_warp_roles(), reason="this Triton has no roles for warps as we write them")
def test_gpu_a_captured_prompt_gives_what_a_called_one_does() -> None:
    serving, _ = choose_serving(HeadShape(8, 2, 128, 128), torch.bfloat16, GPU, tuple(Phase), check=True)
    assert (serving.backend(CALLED, 700), serving.backend(CAPTURED, 700)) == (CUDNN, TRITON)
    served = Served(serving, torch.bfloat16, 128, 128)
    function = exact_attention(served)
    query, key, value = (torch.randn(1, 8, 700, 128, device=GPU).bfloat16() for _ in range(3))
    key, value, module = key[:, :2], value[:, :2], nn.Module()
    with torch.no_grad():
        wanted, _ = function(module, query, key, value, None)
        torch.cuda.synchronize()
        assert served.launched == {GPU}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            assert served.prompt(query, key, value) is CAPTURED
            got, _ = function(module, query, key, value, None)
    got.zero_()
    graph.replay()
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)
