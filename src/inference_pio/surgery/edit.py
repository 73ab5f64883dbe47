"""What an edit is: a name, how exact it is, where it applies, what is decided there, and the writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from inference_pio.contract.site import Site
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.text import SurgeryText
from inference_pio.undo.journal import Journal

Exactness = Literal["bit", "algebraic", "traffic", "approximate"]
"""Equal bits; equal but for the order of sums; equal on what was recorded; near."""
Places = dict[str, Any]
"""What is decided, as JSON, by the path it is decided for."""


class Edit(ABC):
    """One kind of change. `sites` and `decide` only look, at a skeleton too; `apply` writes through the journal."""

    name: ClassVar[str]
    exactness: ClassVar[Exactness]
    changes_state_dict: ClassVar[bool] = True
    learns: bool = False
    """Whether data decide what it does."""

    def __init__(self, asked: SurgeryParameters) -> None:
        self.asked = asked

    @abstractmethod
    def sites(self, model: nn.Module) -> Iterable[Site]:
        """Where it would act, and where it would not, with reasons."""

    def decide(self, model: nn.Module, paths: Iterable[str], others: Mapping[str, Places]) -> Places:
        """What is foretold of each site; `others` are those of edits that were decided before."""
        return dict.fromkeys(paths)

    def learn(
        self, model: nn.Module, places: Places, text: SurgeryText, others: Mapping[str, Places]
    ) -> tuple[Places, dict[str, Any]] | None:
        """The places as data choose them, and what is to be told of that; None for what no data decide. `others` are
        those of edits that were decided before.
        """
        return None

    def preflight(self, model: nn.Module, paths: Sequence[str]) -> None:
        """Checks that need values, before the first write; raise to refuse."""
        return

    @abstractmethod
    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        """Write at places, of which there are some; return what the receipt should say."""
