"""What a call of `generate` has brought so far: rows that grow until they end, heard by the streamer as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation import stopping_criteria as library

from inference_pio.errors import InvalidSetting

ON_THE_HOST = (library.MaxLengthCriteria, library.MaxTimeCriteria, library.EosTokenCriteria, library.StopStringCriteria)
"""Criteria that answer as well about tokens that lie on the host."""


class Progress:
    """`accept` takes the next token of every row; rows that have ended get the padding token in its place.

    The library's own criteria say when a row ends. Those of a user's own are asked about tokens on the model's device,
    where they would be in the library's loop.
    """

    def __init__(self, prompt: Tensor, criteria: Sequence[Any], pad: int | None, streamer: Any = None) -> None:
        self.device, self.criteria, self.streamer = prompt.device, criteria, streamer
        self.hosted = all(type(one) in ON_THE_HOST for one in criteria)
        self.pad = pad if any(hasattr(one, "eos_token_id") for one in criteria) else None
        if self.pad is None and any(hasattr(one, "eos_token_id") for one in criteria):
            raise InvalidSetting("rows can end and there is no padding token: give pad_token_id to generate.")
        self._held = prompt.cpu() if self.hosted else prompt
        self.unfinished = torch.ones(len(prompt), dtype=torch.bool, device=self._held.device)
        self.prompt, self.length = prompt.shape[1], prompt.shape[1]

    @property
    def tokens(self) -> Tensor:
        """All tokens, [B, length], where the prompt was."""
        return self._held[:, : self.length].to(self.device)

    @property
    def new(self) -> int:
        return self.length - self.prompt

    def accept(self, tokens: Tensor) -> bool:
        """Take int64 [B]; True once every row has ended."""
        tokens = tokens.to(self._held.device)
        if self.pad is not None:
            tokens = torch.where(self.unfinished, tokens, self.pad)
        self._room()[:, self.length] = tokens
        self.length += 1
        held = self._held[:, : self.length]
        for one in self.criteria:
            self.unfinished &= ~one(held, None).to(held.device)
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())
        return not bool(self.unfinished.any())

    def end(self) -> None:
        """Tell the streamer that no more will come."""
        if self.streamer is not None:
            self.streamer.end()

    def _room(self) -> Tensor:
        """The held tokens, with room for one more: doubled as they come, so that growing costs a token little."""
        if self.length == self._held.shape[1]:
            room = self._held.new_zeros(len(self._held), max(64, self.length))
            self._held = torch.cat([self._held, room], 1)
        return self._held
