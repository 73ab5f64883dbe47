"""What a system gets beside the model: the prompt it will meet, room for its tokens, and how much it may compile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Room:
    """`tokens` is what a static cache must hold. A smoke run compiles nothing: compiling a tiny model proves little."""

    prompt: Tensor
    tokens: int
    smoke: bool = False
    notes: list[str] = field(default_factory=list)

    def compiling(self, options: dict[str, Any] | None) -> dict[str, Any] | None:
        if options is not None and self.smoke:
            self.notes.append("smoke run: not compiled")
            return None
        return options
