"""One pass over the calibration batches that takes the statistics of every layer's input, a few layers at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from inference_pio.anatomy.walk import experts, linears
from inference_pio.calibration.expert_inputs import watch_experts
from inference_pio.calibration.forward import Progress, run_batches
from inference_pio.calibration.groups import Watched, groups_within
from inference_pio.calibration.input_statistics import InputStatistics
from inference_pio.calibration.kept import Kept
from inference_pio.calibration.rows import Rows, SharingChanged
from inference_pio.calibration.source import CalibrationSource
from inference_pio.errors import InvalidSetting, UnknownName

BUDGET_BYTES = 4 * 2**30


def collect_inputs(
    model: nn.Module, source: CalibrationSource, paths: Sequence[str] | None = None, *, gram: bool = True,
    budget_bytes: int = BUDGET_BYTES, work: Path | None = None, progress: Progress | None = None,
) -> Iterator[InputStatistics]:  # fmt: skip
    """The statistics of the inputs of the linear layers and fused experts at `paths` (all of them without).

    Layers are taken in groups whose sums fit into `budget_bytes`, each group in a run of its own over all batches,
    which ends where the group does; what is yielded may be dropped before the next group begins. Layers that are given
    the same tensor share one answer. With `work`, a folder, finished groups are kept there and not run again. Rows that
    an `attention_mask` rules out are not counted. Raises UnknownName for a path that is no such layer, InvalidSetting
    for a layer that no batch reaches.
    """
    watched = watched_layers(model, paths)
    groups = list(groups_within(watched, gram, budget_bytes))
    for number, group in enumerate(groups):
        kept = Kept(work, source, [one.path for one in group], gram) if work else None
        found = kept.read() if kept else None
        if found is None:
            told = _part(progress, number, len(groups))
            found = _run(model, source, group, gram, told)
            if kept:
                kept.write(found)
        elif progress:
            progress("calibration", (number + 1) / len(groups))
        yield from found


def watched_layers(model: nn.Module, paths: Sequence[str] | None) -> list[Watched]:
    """The linear layers and fused experts at `paths`, in the model's order."""
    there = {
        path: Watched(path, module, role) for path, module, role in itertools.chain(linears(model), experts(model))
    }
    for path in paths or ():
        if path not in there:
            raise UnknownName("linear layer or module of fused experts", path, there)
    order = [path for path, _ in model.named_modules() if path in there and (paths is None or path in set(paths))]
    return [there[path] for path in order]


def _run(
    model: nn.Module, source: CalibrationSource, group: Sequence[Watched], gram: bool, progress: Progress | None
) -> list[InputStatistics]:
    apart: set[str] = set()
    while True:
        rows = Rows(gram, apart)
        try:
            _run_once(model, source, group, rows, progress)
        except SharingChanged as changed:  # rare: a layer that is sometimes given another's tensor counts for itself
            apart.add(changed.path)
            continue
        return rows.statistics()


def _run_once(
    model: nn.Module, source: CalibrationSource, group: Sequence[Watched], rows: Rows, progress: Progress | None
) -> None:
    handles = [_watch(one, rows) for one in group]
    try:
        run_batches(model, source, rows, [one.path for one in group], progress)
    finally:
        for handle in handles:
            handle.remove()
    if unseen := [one.path for one in group if one.path not in rows.seen]:
        raise InvalidSetting(
            f"no calibration batch reaches {', '.join(unseen[:3])}"
            f"{f' and {len(unseen) - 3} more' if len(unseen) > 3 else ''}: give inputs that use them, "
            "or leave them out."
        )


def _watch(one: Watched, rows: Rows) -> torch.utils.hooks.RemovableHandle:
    if one.is_experts:
        return watch_experts(one.path, one.module, rows)

    def note(module: nn.Module, args: tuple[object, ...]) -> None:
        rows.note(one.path, args[0])  # type: ignore[arg-type]

    return one.module.register_forward_pre_hook(note)


def _part(progress: Progress | None, number: int, groups: int) -> Callable[[str, float], None] | None:
    if progress is None:
        return None
    return lambda stage, share: progress(stage, (number + share) / groups)
