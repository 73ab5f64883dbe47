"""What the engine has done for a model, for its status and reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """`left` counts the calls that the library's own loop decoded, by reason; `prompts` the prompts of the others that
    recorded forwards read, `prompts_left` those that the library's forward read, by reason.

    >>> counts = Counts()
    >>> counts.left["beam search"] += 1
    >>> counts.to_json()["left_to_the_library"]
    {'beam search': 1}
    """

    calls: int = 0
    new_tokens: int = 0
    recorded: int = 0
    recording_s: float = 0.0
    left: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    prompts_left: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "new_tokens": self.new_tokens,
            "recorded": self.recorded,
            "recording_s": round(self.recording_s, 3),
            "left_to_the_library": dict(self.left),
            "prompts": self.prompts,
            "prompts_left_to_the_library": dict(self.prompts_left),
        }
