"""Drift: values in the slots of an optimization that somebody else has put there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from inference_pio.errors import ModelDrift
from inference_pio.undo.configs import OwnConfigs, snapshot
from inference_pio.undo.frame import Frame
from inference_pio.undo.journal import Journal
from inference_pio.undo.slots import ABSENT, MappingWrite, MemberWrite, Write
from inference_pio.undo.tensors import Park, Rehouse

SHOWN = 5


def check_drift(journal: Journal, frames: Sequence[Frame], owned: OwnConfigs | None = None) -> None:
    """Raise ModelDrift if a slot that is to be taken back no longer holds what was written there.

    `owned` adds the model's own configurations, which go back as a whole with the last step.
    """
    found = list(dict.fromkeys(_drifts(journal, frames)))
    if owned is not None:
        found += config_drifts(journal, owned)
    if found:
        more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        raise ModelDrift(
            f"the model was changed under an optimization: {'; '.join(found[:SHOWN])}{more}. Nothing was touched. "
            "Take that change back first (detach the adapter, restore the value), "
            "or pass on_drift='discard' to lose it and get the original back."
        )


def _drifts(journal: Journal, frames: Sequence[Frame]) -> Iterator[str]:
    every = [journal.base, *journal.frames]
    latest = {key: entry for frame in every for entry in frame.entries if (key := _place(entry)) is not None}
    known = _modules_we_know(journal, every)
    for frame in frames:
        for entry in frame.entries:
            key = _place(entry)
            if (key is None or latest[key] is entry) and (problem := _drift_of(entry, known)):
                place, what = problem
                yield f"{place} (of {frame.name}) {what}"


def _place(entry: Write) -> tuple[int, Any] | None:
    """What two writes of one place have in common; the later one tells what should stand there."""
    if isinstance(entry, MappingWrite):
        return id(entry.mapping), entry.key
    return (id(entry.members), entry.key) if isinstance(entry, MemberWrite) else None


def _drift_of(entry: Write, known: set[int]) -> tuple[str, str] | None:
    if isinstance(entry, MappingWrite):
        what = _value_drift(entry, known)
        return (str(entry.slot), what) if what else None
    if isinstance(entry, MemberWrite) and entry.current != entry.after:
        return str(entry.slot), "was changed"
    if isinstance(entry, Park) and entry.was_moved():
        return f"the parked original {entry.slot}", "was given new data"
    if isinstance(entry, Rehouse) and entry.was_moved():
        return str(entry.slot), "was given new data"
    return None


def _value_drift(entry: MappingWrite, known: set[int]) -> str | None:
    if isinstance(entry.owner, nn.Module) and id(entry.owner) not in known:
        return f"lies in a {type(entry.owner).__name__} that was taken out of the model"
    current, written = entry.current, entry.after
    if current is written or (_plain(written) and type(current) is type(written) and current == written):
        return None
    return f"holds {_short(current)} where {_short(written)} was written"


def config_drifts(journal: Journal, owned: OwnConfigs) -> list[str]:
    """Attributes of the model's own configurations that somebody other than a step has changed."""
    written = {
        (id(entry.mapping), entry.key)
        for frame in journal.frames
        for entry in frame.entries
        if isinstance(entry, MappingWrite)
    }
    found = []
    for config, before in zip(owned.copies, owned.snapshots, strict=True):
        now = snapshot(config)
        for key in sorted(now.keys() | before.keys()):
            value, stood = now.get(key, ABSENT), before.get(key, ABSENT)
            if (id(vars(config)), key) not in written and value is not stood and value != stood:
                found.append(f"config.{key} holds {_short(value)} where {_short(stood)} stood")
    return found


def _modules_we_know(journal: Journal, frames: Sequence[Frame]) -> set[int]:
    known = {id(module) for module in journal.model.modules()}
    for frame in frames:
        for entry in frame.entries:
            taken_out = entry.before if isinstance(entry, MappingWrite) else None
            if isinstance(taken_out, nn.Module) and id(taken_out) not in known:
                known |= {id(module) for module in taken_out.modules()}
    return known


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | tuple)


def _short(value: Any) -> str:
    if value is ABSENT:
        return "nothing"
    text = repr(value) if _plain(value) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
