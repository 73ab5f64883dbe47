"""By what the calls of one kind of attention are served, call by call."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from inference_pio.kernels.attention_backends import run
from inference_pio.kernels.attention_choice import FLEX, FUSED, READ_A_MASK, TRITON, Phase
from inference_pio.kernels.attention_serving import Serving
from inference_pio.kernels.triton.attention_support import supports

FOR_INFERENCE_ALONE = (TRITON, FLEX)
"""With gradients or dropout, and inside torch.compile, torch's own choice stands in for these."""
NEVER = 1 << 62
"""More keys than there are."""


@dataclass(frozen=True)
class Served:
    """Which backends serve, and the tensors that they were chosen and checked for; others, and masks of
    a kind that the Triton kernel does not read, get torch's own choice."""

    serving: Serving
    dtype: torch.dtype
    head_dim: int
    value_dim: int
    launched: set[torch.device] = field(default_factory=set, compare=False)
    """Where what a graph takes of prompts was launched before: a kernel cannot be loaded while one is captured."""

    @cached_property
    def captured_apart(self) -> tuple[int, int] | None:
        """From and up to how many keys a captured prompt is served by Triton, and one that is called is not."""
        steps = [self.serving.steps.get(phase, ()) for phase in (Phase.CAPTURED_PREFILL, Phase.PREFILL)]
        captured, called = (min((keys for keys, name in one if name == TRITON), default=NEVER) for one in steps)
        return (captured, called) if captured < called else None

    def prompt(self, query: Tensor, key: Tensor, value: Tensor) -> Phase:
        """The phase of a whole prompt on a GPU."""
        if torch.compiler.is_compiling() or self.captured_apart is None:
            return Phase.PREFILL
        first, last = self.captured_apart
        if not first <= key.shape[2] < last:
            return Phase.PREFILL
        if torch.cuda.is_current_stream_capturing():
            return Phase.CAPTURED_PREFILL if query.device in self.launched else Phase.PREFILL
        if query.device not in self.launched:
            self._launch(query.detach(), key.detach(), value.detach())
        return Phase.PREFILL

    def _launch(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        if self.backend(Phase.CAPTURED_PREFILL, query, key, value, 0.0) == TRITON:
            run(TRITON, Phase.CAPTURED_PREFILL, query, key, value)
            self.launched.add(query.device)

    def backend(
        self, phase: Phase, query: Tensor, key: Tensor, value: Tensor, dropout: float, mask: Tensor | None = None
    ) -> str:
        if (query.dtype, query.shape[-1], value.shape[-1]) != (self.dtype, self.head_dim, self.value_dim):
            return FUSED
        backend = self.serving.backend(phase, key.shape[2])
        if backend in FOR_INFERENCE_ALONE:
            trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
            if trained or dropout or torch.compiler.is_compiling():
                return FUSED
        if backend == TRITON and phase in READ_A_MASK and not supports(query, key, value, mask):
            return FUSED
        return backend
