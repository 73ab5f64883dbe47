"""One training step: plain on a CPU; on a GPU one CUDA graph of forward, backward and optimizer per batch shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .batches import Batch
from .objective import KINDS, balance_loss, nudge_biases, token_loss
from .optimizer import Optimizer
from .walk import Pictures, hidden_states, prepare

# Steps run plainly before a capture, so that every library has its workspaces.
PLAIN_STEPS = 3


class Stepper:
    """Runs steps on `model`; `sums` collects (loss, hits, count) of each kind of token."""

    def __init__(self, model: Any) -> None:
        self.model, self.routers = model, prepare(model)
        self.optimizer = Optimizer(model)
        self.device = next(model.parameters()).device
        self.rate = torch.zeros((), device=self.device)
        self.sums = torch.zeros(len(KINDS), 3, device=self.device)
        self.shapes: dict[Any, _Shape] = {}

    def step(self, batch: Batch, rate: float) -> None:
        """Train on one batch with all learning rates times `rate`."""
        self.rate.fill_(rate)
        key = (batch.tokens.shape, None if batch.at is None else batch.at.shape)
        shape = self.shapes.get(key)
        if shape is None:
            # The graphs and buffers of the last length are not needed again.
            self.shapes.clear()
            shape = self.shapes[key] = _Shape(batch, self.device)
        shape.run(batch, self._whole_step)

    def _whole_step(self, inputs: dict[str, torch.Tensor]) -> None:
        for weight in self.model.parameters():
            weight.grad = None
        pictures = Pictures(inputs["pixels"], inputs["at"]) if "pixels" in inputs else None
        tokens = inputs["tokens"]
        states = hidden_states(self.model, tokens[:, :-1], inputs.get("positions"), pictures)
        logits = self.model.lm_head(states.flatten(0, 1))
        kinds = inputs["kinds"][:, 1:].reshape(-1)
        loss, sums = token_loss(logits, tokens[:, 1:].reshape(-1), kinds)
        (loss + balance_loss(self.routers)).backward()
        self.optimizer.step(self.rate)
        nudge_biases(self.routers)
        self.sums.add_(sums)

    def take_sums(self) -> torch.Tensor:
        """The sums since the last call, on the host."""
        taken = self.sums.to("cpu", copy=True)
        self.sums.zero_()
        return taken

    def state(self) -> dict[str, torch.Tensor]:
        """Everything the next step depends on."""
        biases = {f"bias{i}": r.e_score_correction_bias for i, r in enumerate(self.routers) if _has_bias(r)}
        return self.optimizer.state() | biases

    @torch.no_grad()
    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Go on from a saved state."""
        self.optimizer.restore(saved)
        for index, router in enumerate(self.routers):
            if _has_bias(router):
                router.e_score_correction_bias.copy_(saved[f"bias{index}"])


def _has_bias(router: nn.Module) -> bool:
    return hasattr(router, "e_score_correction_bias")


class _Shape:
    """The buffers of one batch shape, and on a GPU the graph over them."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.device, self.graph, self.plain_left = device, None, PLAIN_STEPS
        self.inputs = {name: torch.empty_like(part, device=device) for name, part in _tensors(batch).items()}

    def run(self, batch: Batch, whole_step: Any) -> None:
        for name, part in _tensors(batch).items():
            source = part.pin_memory() if self.device.type == "cuda" else part
            self.inputs[name].copy_(source, non_blocking=True)
        if self.device.type != "cuda":
            whole_step(self.inputs)
        elif self.graph is not None:
            self.graph.replay()
        elif self.plain_left:
            self._run_aside(whole_step)
        else:
            self._capture(whole_step)
            self.graph.replay()

    def _run_aside(self, whole_step: Any) -> None:
        self.plain_left -= 1
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            whole_step(self.inputs)
        torch.cuda.current_stream().wait_stream(aside)

    def _capture(self, whole_step: Any) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            whole_step(self.inputs)


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(part) for name, part in vars(batch).items() if part is not None}
