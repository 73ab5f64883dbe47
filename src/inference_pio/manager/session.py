"""The session of one model: its journal, gate, target set and standing steps. Hangs on the model, and goes with it."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.receipt import Receipt
from inference_pio.contract.verdict import Verdict
from inference_pio.errors import RefusedOnOptimized
from inference_pio.files import is_folder
from inference_pio.plan.moves import Standing
from inference_pio.plan.plan import Left
from inference_pio.plan.skeleton import skeleton_of
from inference_pio.plan.target import TargetSet
from inference_pio.undo.checkpoint import Checkpoint
from inference_pio.undo.configs import OwnConfigs
from inference_pio.undo.frame import Frame
from inference_pio.undo.gate import Gate
from inference_pio.undo.journal import Journal
from inference_pio.undo.places import SESSION
from inference_pio.undo.vault import KeepOriginals, Vault

COPIED = "no: this is a copy of an optimized model, and the originals stayed with the first"


@dataclass(frozen=True)
class Applied:
    """A step that stands on the model."""

    optimization: OptimizationInterface
    frame: Frame
    receipt: Receipt
    standing: Standing

    @property
    def name(self) -> str:
        return self.receipt.name


class Session:
    """All that is known about one optimized model."""

    def __init__(self, model: nn.Module) -> None:
        self.gate = gate_of(model)
        self.journal = Journal(model)
        self.skeleton: nn.Module | None = skeleton_of(model)
        self.born = self.skeleton
        """The model before any step, a copy's too: what the library had asked for stands in its configurations."""
        self.owned = OwnConfigs()
        self.applied: list[Applied] = []
        self.target: TargetSet = {}
        self.left: tuple[Left, ...] = ()
        self.order: list[str] = []
        self.profile: str | None = None
        self.verdict: Verdict | None = None
        """What a quality guard said of this very target set."""
        self.inherited: tuple[Receipt, ...] = ()
        self.irreversible: str | None = None
        self.stays = False
        """Whether guards stay where no step does; see `kept_open`."""

    @property
    def empty(self) -> bool:
        """Whether guards are all that is left, and may go."""
        opened = bool(self.journal.base.entries)
        return opened and not (self.applied or self.inherited or self.stays)

    def take_stock(self, model: nn.Module) -> None:
        """A copy of an optimized model starts from what it is when it is edited first."""
        if self.skeleton is None:
            self.skeleton, self.journal = skeleton_of(model), Journal(model)

    @property
    def standing(self) -> list[Standing]:
        return [step.standing for step in self.applied]

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """What each step did, in the order of the plan (a step may have been put on top of one it commutes with)."""
        rank = {name: place for place, name in enumerate(self.order)}
        applied = sorted((step.receipt for step in self.applied), key=lambda receipt: rank.get(receipt.name, len(rank)))
        return (*self.inherited, *applied)

    @property
    def held_bytes(self) -> int:
        """Memory that the originals of all standing steps take (not disk)."""
        return sum(step.frame.held_bytes for step in self.applied)

    @property
    def parked_bytes(self) -> int:
        return sum(step.frame.parked_bytes for step in self.applied)

    @property
    def changes_state_dict(self) -> bool:
        return any(receipt.changes_state_dict for receipt in self.receipts)

    def open_vault(self, keep: KeepOriginals, model: nn.Module, folder: Path) -> None:
        """Park what the next steps replace as `keep` says; an earlier vault lives as long as something parked in it."""
        source = Path(str(getattr(getattr(model, "config", None), "name_or_path", "") or "."))
        wanted = keep in ("auto", "checkpoint") and is_folder(source) and str(source) != "."
        self.journal.vault = Vault(keep, folder, Checkpoint(source) if wanted else None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """A copied model is optimized as it stands, but owns no originals."""
        twin = Session.__new__(Session)
        memo[id(self)] = twin
        twin.__dict__.update(
            gate=Gate(), journal=Journal(nn.Module()), skeleton=None, born=self.born,
            owned=OwnConfigs(), applied=[], target={}, left=(), order=[], profile=self.profile,
            verdict=self.verdict, stays=False,
            inherited=tuple(replace(receipt, reversible=False) for receipt in self.receipts), irreversible=COPIED,
        )  # fmt: skip
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RefusedOnOptimized(
            "an optimized model cannot be pickled: it holds the way back to its originals. "
            "Use inference_pio.save(model, folder), or reset_model_optimizations(model) first."
        )


_gates: weakref.WeakKeyDictionary[nn.Module, Gate] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def gate_of(model: nn.Module) -> Gate:
    """The one gate of a model, whether it is optimized or not: two threads that both begin must meet at it."""
    session = session_of(model)
    if session is not None:
        return session.gate
    with _making:
        return _gates.setdefault(model, Gate())


def session_of(model: nn.Module) -> Session | None:
    """The session that hangs on a model, if it is or was optimized."""
    found = model.__dict__.get(SESSION)
    return found if isinstance(found, Session) else None
