"""Batches made ahead of time, in processes of their own, so that a GPU never waits for them."""

from __future__ import annotations

import multiprocessing
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor

from .batches import Batch, Maker

AHEAD = 12
_maker: Maker | None = None


def _start(maker_state: tuple[str, object]) -> None:
    global _maker
    from tokenizers import Tokenizer

    text, rest = maker_state
    _maker = Maker(Tokenizer.from_str(text), **rest)  # type: ignore[arg-type]


def _make(step: int, length: int) -> Batch:
    assert _maker is not None
    return _maker.batch(step, length)


class Feeder:
    """Batches by step and length; with `workers` of 0 they are made on the spot."""

    def __init__(self, maker: Maker, workers: int = 0) -> None:
        self.maker, self.pool = maker, None
        self.waiting: deque[tuple[int, int, Future[Batch]]] = deque()
        if workers:
            rest = {name: value for name, value in vars(maker).items() if name != "tokenizer"}
            # A fresh interpreter for each: a forked one would inherit the GPU's state.
            self.pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _start, ((maker.tokenizer.to_str(), rest),)
            )

    def batch(self, step: int, length: int) -> Batch:
        """The batch of this step; the following ones, of the same length, are already asked for."""
        if self.pool is None:
            return self.maker.batch(step, length)
        if not self.waiting or self.waiting[0][:2] != (step, length):
            self.waiting.clear()
        first = step + len(self.waiting)
        for later in range(first, step + AHEAD):
            self.waiting.append((later, length, self.pool.submit(_make, later, length)))
        return self.waiting.popleft()[2].result()

    def close(self) -> None:
        """Stop the processes; batches asked for and not read are dropped."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
