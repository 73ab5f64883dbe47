"""How much each output of a layer counts: the gradients that the model's answers have for it, over calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.pieces import whole_calls
from inference_pio.calibration.in_order import in_order
from inference_pio.calibration.saved_on_host import SavedOnHost, saved_on_host
from inference_pio.calibration.source import Batch, CalibrationSource
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.low_rank import shrunk
from inference_pio.measure.target import input_device, supported

TOKENS = 8192
"""More add little: on a trained model 28,672 in their place lessen the divergence by 5%."""
MOST_SQUARE = 4096
"""Outputs of more than that count by themselves: the products of all pairs would take half a gigabyte a layer."""


class OutputWeights:
    """How much outputs count, a few layers at a time; `why_not` says why they cannot be weighed, `saved` what had to
    wait on the host."""

    def __init__(self, model: nn.Module, source: CalibrationSource) -> None:
        self.why_not: str | None = None
        self.saved = SavedOnHost()
        self._model, self._source = model, source

    def of(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """By path, as `collect_outputs` gives them; none once it has found that it cannot."""
        if self.why_not is not None:
            return {}
        try:
            return collect_outputs(self._model, self._source, paths, saved=self.saved)
        except InvalidSetting as error:
            self.why_not = str(error)
            return {}


def collect_outputs(
    model: nn.Module, source: CalibrationSource, paths: Sequence[str], *, seed: int = 0, tokens: int = TOKENS,
    saved: SavedOnHost | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """By path, the mean of g gᵀ over tokens, float64 [out, out], shrunk, or its diagonal [out] for many outputs.

    g are the gradients of the log-likelihood of tokens that the model itself chooses by its logits (of its outputs
    times chance, where it gives no logits), so that half of what an error of the outputs comes to by these means is the
    divergence that it leads to. Where the device has no room for what gradients need, a batch is computed once more,
    and all of it waits on the host from then on; `saved` tells. Raises InvalidSetting, with the reason, where the model
    cannot be differentiated, and torch.OutOfMemoryError where that is not enough.
    """
    chance = torch.Generator(input_device(model)).manual_seed(seed)
    saved = SavedOnHost() if saved is None else saved
    sums: dict[str, Tensor] = {}
    rows, kind = 0, None
    for batch in some_batches(source, tokens):
        found, count = _gradients_or_again(model, batch, paths, chance, saved)
        rows += count
        for path, gradient in found:
            added, kind = _products(gradient), gradient.dtype
            sums[path] = sums[path] + added if path in sums else added
    if strange := [path for path, total in sums.items() if not total.isfinite().all()]:
        raise InvalidSetting(f"the gradients of {strange[0]} are too large for {kind}, or no numbers.")
    means = {path: total / max(rows, 1) for path, total in sums.items()}
    return {path: shrunk(mean, rows) if mean.dim() == 2 else mean for path, mean in means.items()}


def _gradients_or_again(
    model: nn.Module, batch: Batch, paths: Sequence[str], chance: torch.Generator, saved: SavedOnHost
) -> tuple[list[tuple[str, Tensor]], int]:
    """The gradients of a batch; those of a second try, with the same chance, where the first had no room."""
    before = chance.get_state()
    try:
        return _gradients(model, batch, paths, chance, saved)
    except torch.OutOfMemoryError:
        if saved.wanted:
            raise
    saved.wanted = True  # out here nothing holds what the first try had made
    chance.set_state(before)
    return _gradients(model, batch, paths, chance, saved)


def _gradients(
    model: nn.Module, batch: Batch, paths: Sequence[str], chance: torch.Generator, saved: SavedOnHost
) -> tuple[list[tuple[str, Tensor]], int]:
    """The gradients of all that layers give for a batch, by their paths, and over how many rows."""
    with _outputs(model, paths) as outputs, saved_on_host(model, saved) if saved.wanted else nullcontext():
        try:
            loss, count = _loss(model, batch, chance)
            there = [(path, one) for path, given in outputs.items() for one in given]
            with in_order():
                gradients = torch.autograd.grad(loss, [one for _, one in there], allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise InvalidSetting(f"{type(model).__name__} cannot be differentiated: {error}") from error
    found = [(path, gradient) for (path, _), gradient in zip(there, gradients, strict=True) if gradient is not None]
    return found, count


def _products(gradient: Tensor) -> Tensor:
    rows = gradient.reshape(-1, gradient.shape[-1]).float()
    return (rows.T @ rows if rows.shape[1] <= MOST_SQUARE else rows.square().sum(0)).double()


def some_batches(source: CalibrationSource, tokens: int) -> list[Batch]:
    """Batches spread evenly, of about so many tokens."""
    count = len(source.batches)
    wanted = max(1, min(count, round(count * tokens / source.tokens) if source.tokens else count))
    return [source.batches[place * count // wanted] for place in range(wanted)]


@contextmanager
def _outputs(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What the layers at `paths` give, as tensors that have gradients."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}

    def noting(path: str) -> Any:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            found[path].append(output if output.requires_grad else output.requires_grad_())

        return note

    handles = [model.get_submodule(path).register_forward_hook(noting(path)) for path in paths]
    try:
        with torch.enable_grad(), whole_calls():
            yield found
    finally:
        for handle in handles:
            handle.remove()


def _loss(model: nn.Module, batch: Batch, chance: torch.Generator) -> tuple[Tensor, int]:
    """A number whose gradients tell how the answers change, and over how many rows it is a sum."""
    device = input_device(model)
    given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    result: Any = model(**{**supported(model, use_cache=False), **given})
    logits = getattr(result, "logits", None)
    answers = logits if logits is not None else result if isinstance(result, Tensor) else result[0]
    answers = answers.reshape(-1, answers.shape[-1]).float()
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.numel() == len(answers):
        answers = answers[mask.reshape(-1).bool().to(answers.device)]
    if logits is None:
        noise = torch.randn(answers.shape, generator=chance, device=chance.device).to(answers.device)
        return (answers * noise).sum(), len(answers)
    likely = answers.detach().softmax(-1).to(chance.device)
    chosen = torch.multinomial(likely, 1, generator=chance).to(answers.device)
    return -answers.log_softmax(-1).gather(-1, chosen).sum(), len(answers)
