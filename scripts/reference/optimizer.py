"""Muon for the matrices, AdamW for the rest, on fp32 masters of bf16 weights; every step is the same few kernels.

Muon (Keller Jordan, 2024) orthogonalizes the momentum of each matrix by Newton-Schulz steps. Matrices of one shape are
stacked, so that a model's step is a handful of batched products; the learning rate and the step number are tensors, so
that a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

MUON_RATE, ADAM_RATE = 0.02, 0.003
TABLE_RATE = 0.01  # of an untied table; a tied one is the head too, and moves as slowly
MUON_MOMENTUM, ADAM_BETAS, ADAM_EPSILON = 0.95, (0.9, 0.95), 1e-8
# Strong: the text is read several times over, and weights without outliers are what compression is tried on.
DECAY = 0.1
# Coefficients of the quintic iteration, chosen by Muon's author for a steep start.
NEWTON = (3.4445, -4.7750, 2.0315)


def is_matrix(name: str, weight: torch.Tensor) -> bool:
    """Whether Muon trains this weight: matrices and stacks of expert matrices, not tables, heads or routers."""
    if weight.ndim < 2 or weight.ndim > 3:
        return False
    return not any(part in name for part in ("embed", "lm_head", "gate.weight"))


def _rate(name: str, tied: bool) -> float:
    if "embed_tokens" in name:
        return ADAM_RATE if tied else TABLE_RATE
    return ADAM_RATE


class _Stack:
    """The matrices of one shape: masters and momentum [count, rows, columns]."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights = weights
        self.master = self._rows(weights).float()
        self.momentum = torch.zeros_like(self.master)

    def _rows(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.detach().reshape(-1, *tensor.shape[-2:]) for tensor in tensors])

    def step(self, rate: torch.Tensor) -> None:
        gradient = self._rows(_gradients(self.weights)).float()
        self.momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
        update = orthogonal(gradient.lerp(self.momentum, MUON_MOMENTUM))
        rows, columns = update.shape[-2:]
        self.master.mul_(1 - rate * MUON_RATE * DECAY)
        self.master.sub_(update * (rate * MUON_RATE * max(1.0, rows / columns) ** 0.5))
        self.write_back()

    def write_back(self) -> None:
        counts = [weight.numel() // (weight.shape[-1] * weight.shape[-2]) for weight in self.weights]
        parts = [part.view_as(weight) for part, weight in zip(self.master.split(counts), self.weights, strict=True)]
        torch._foreach_copy_([weight.data for weight in self.weights], parts)


class _Flat:
    """Everything else as one vector: masters and both moments."""

    def __init__(self, rates: dict[nn.Parameter, float]) -> None:
        self.weights = weights = list(rates)
        self.master = torch.cat([weight.detach().flatten().float() for weight in weights])
        self.rates = torch.cat([torch.full((w.numel(),), rate, device=w.device) for w, rate in rates.items()])
        self.mean, self.square = torch.zeros_like(self.master), torch.zeros_like(self.master)
        # Biases and norms are one-dimensional and are not decayed.
        decays = ((weight, DECAY if weight.ndim > 1 else 0.0) for weight in weights)
        self.decay = torch.cat([torch.full((w.numel(),), decay, device=w.device) for w, decay in decays])

    def step(self, rate: torch.Tensor, count: torch.Tensor) -> None:
        gradient = torch.cat([part.flatten().float() for part in _gradients(self.weights)])
        first, second = ADAM_BETAS
        self.mean.lerp_(gradient, 1 - first)
        self.square.lerp_(gradient * gradient, 1 - second)
        spread = (self.square / (1 - second**count)).sqrt_().add_(ADAM_EPSILON)
        update = (self.mean / (1 - first**count)).div_(spread).add_(self.decay * self.master)
        self.master.sub_(update * (rate * self.rates))
        self.write_back()

    def write_back(self) -> None:
        sizes = [weight.numel() for weight in self.weights]
        parts = [part.view_as(weight) for part, weight in zip(self.master.split(sizes), self.weights, strict=True)]
        torch._foreach_copy_([weight.data for weight in self.weights], parts)


def _gradients(weights: list[nn.Parameter]) -> list[torch.Tensor]:
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]


class Optimizer:
    """Trains all parameters of `model`; `step(rate)` takes the schedule's factor as a tensor on the model's device."""

    def __init__(self, model: nn.Module) -> None:
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        rest: dict[nn.Parameter, float] = {}
        tied = not any(name.startswith("lm_head") for name, _ in model.named_parameters())
        for name, weight in model.named_parameters():
            if is_matrix(name, weight):
                shapes.setdefault(tuple(weight.shape[-2:]), []).append(weight)
            else:
                rest[weight] = _rate(name, tied)
        self.stacks = [_Stack(weights) for weights in shapes.values()]
        self.flat = _Flat(rest)
        self.count = torch.zeros((), device=self.flat.master.device)

    @torch.no_grad()
    def step(self, rate: torch.Tensor) -> None:
        self.count.add_(1)
        for stack in self.stacks:
            stack.step(rate)
        self.flat.step(rate, self.count)

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that a later step depends on, by name; the very tensors, not copies."""
        named = {"count": self.count, "flat.master": self.flat.master}
        named |= {"flat.mean": self.flat.mean, "flat.square": self.flat.square}
        for index, stack in enumerate(self.stacks):
            named |= {f"stack{index}.master": stack.master, f"stack{index}.momentum": stack.momentum}
        return named

    @torch.no_grad()
    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Take up a saved state, masters and weights included."""
        for name, tensor in self.state().items():
            tensor.copy_(saved[name])
        for part in (*self.stacks, self.flat):
            part.write_back()


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (roughly) orthogonal matrices of [count, rows, columns], computed in bf16 on a GPU."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NEWTON
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()
