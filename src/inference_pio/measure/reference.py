"""What the original said, kept so that the original need not stay: its logits on disk, its losses in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.files import require_free_bytes, storage_errors
from inference_pio.measure.divergence import token_losses
from inference_pio.measure.greedy import GreedyReference
from inference_pio.measure.interval import Interval, mean_interval
from inference_pio.measure.logits import check_tokens, window_logits
from inference_pio.measure.target import check_measurable

# Left free beside the logits, for the rest of the machine.
SPARE_BYTES = 64 * 2**20


class Reference:
    """The recorded answers of one model on tokens [windows, window], bit for bit in the dtype it gave them in.

    The logits lie in an unnamed temporary file that nobody else can open, gone when this is closed, collected, or the
    process ends in whatever way. Take it from `Reference.record`.
    """

    def __init__(self, tokens: Tensor, directory: Path | None = None) -> None:
        check_tokens(tokens)
        self.tokens = tokens.cpu()
        self.losses = torch.empty(tokens.shape[0], tokens.shape[1] - 1, dtype=torch.float64)
        self.vocab_size = 0
        self.dtype = torch.float32
        self.greedy: GreedyReference | None = None
        self._directory = Path(directory or tempfile.gettempdir())
        self._file = self._open()
        self._finalizer = weakref.finalize(self, self._file.close)

    @classmethod
    def record(
        cls,
        model: nn.Module,
        tokens: Tensor,
        directory: Path | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Reference:
        """Run `model` once over every window and keep what it says.

        Raises DiskFull before anything is written where the logits do not fit, MeasureError where they are NaN.
        """
        check_measurable(model)
        reference = cls(tokens, directory)
        try:
            for window in range(tokens.shape[0]):
                reference._keep(window, window_logits(model, tokens, window))
                if progress:
                    progress("reference", (window + 1) / tokens.shape[0])
        except BaseException:
            reference.close()
            raise
        return reference

    @property
    def perplexity(self) -> float:
        return float(self.losses.mean().exp())

    @property
    def perplexity_interval(self) -> Interval:
        low, high = torch.tensor(mean_interval(self.losses), dtype=torch.float64).exp().tolist()
        return low, high

    def logits(self, window: int) -> Tensor:
        """What the original said of this window, [window - 1, vocabulary], bit for bit."""
        if self._file.closed:
            raise MeasureError("this reference is closed and its logits are gone: record it again from the original")
        kept = torch.empty(self._window_bytes(), dtype=torch.uint8)
        self._file.seek(window * kept.numel())
        if self._file.readinto(_bytes_of(kept)) != kept.numel():  # type: ignore[attr-defined]
            raise MeasureError(f"the reference's file ends inside window {window}: record it again from the original")
        return kept.view(self.dtype).view(self.losses.shape[1], self.vocab_size)

    def close(self) -> None:
        """Give the disk back; closing twice is harmless."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> IO[bytes]:
        with storage_errors(self._directory):
            return tempfile.TemporaryFile(dir=self._directory)

    def _keep(self, window: int, logits: Tensor) -> None:
        if window == 0:
            self.vocab_size, self.dtype = logits.shape[-1], logits.dtype
            require_free_bytes(self._directory, self._window_bytes() * len(self.tokens) + SPARE_BYTES)
        self.losses[window] = token_losses(logits, self.tokens[window, 1:].to(logits.device))
        with storage_errors(self._directory):
            self._file.write(_bytes_of(logits.cpu().contiguous()))
            self._file.flush()

    def _window_bytes(self) -> int:
        return self.losses.shape[1] * self.vocab_size * self.dtype.itemsize


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own bytes, uncopied; as bytes, because numpy knows no bfloat16."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)
