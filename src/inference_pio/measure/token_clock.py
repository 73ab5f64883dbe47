"""When each token reaches the user: a streamer that notes the time and keeps nothing else."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from inference_pio.errors import MeasureError
from inference_pio.measure.target import synchronize


class TokenClock:
    """Given to `generate(streamer=...)`, which hands it the prompt first and then the tokens, in ones or in batches."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._prompt_seen = False
        self.stamps: list[float] = []
        self.counts: list[int] = []

    def put(self, tokens: Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        synchronize(
            tokens.device
        )  # tokens on the CPU have arrived already; those on a device may be still on their way
        self.stamps.append(self._clock())
        self.counts.append(tokens.numel())

    def end(self) -> None:
        """`generate` says that no token follows."""

    def tokens_per_s(self) -> float:
        """(n - 1) / (t_last - t_first); where the first delivery held k tokens, (n - k) of them came after it."""
        elapsed_s = self.stamps[-1] - self.stamps[0]
        if elapsed_s <= 0:
            raise MeasureError("all tokens came at one moment: decode speed needs tokens that arrive one after another")
        return sum(self.counts[1:]) / elapsed_s

    def check(self, new_tokens: int) -> None:
        """Raise unless exactly the asked number of tokens came."""
        if sum(self.counts) != new_tokens:
            raise MeasureError(
                f"generate() gave {sum(self.counts)} tokens to the streamer where {new_tokens} were asked"
            )
