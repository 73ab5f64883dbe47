"""How often each expert of each mixture is chosen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inference_pio.anatomy.walk import experts
from inference_pio.calibration.expert_inputs import routed
from inference_pio.calibration.forward import Progress, run_batches
from inference_pio.calibration.rows import Rows
from inference_pio.calibration.source import CalibrationSource


def collect_router_counts(
    model: nn.Module, source: CalibrationSource, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Tokens that were sent to each expert, int64 [experts], by the path of the experts; {} for a dense model."""
    watched = {path: module for path, module, _ in experts(model)}
    counts = {
        path: torch.zeros(next(p.shape[0] for p in module.parameters() if p.dim() == 3), dtype=torch.int64)
        for path, module in watched.items()
    }
    if not watched:
        return {}
    rows = Rows(gram=False)
    handles = [_watch(path, module, counts[path], rows) for path, module in watched.items()]
    try:
        run_batches(model, source, rows, list(watched), progress)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _watch(path: str, module: nn.Module, count: Tensor, rows: Rows) -> torch.utils.hooks.RemovableHandle:
    def note(experts: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        hidden, chosen = routed(args, kwargs)
        rows.calls[path] += 1
        true_rows = rows.true_rows(hidden.shape[0])
        kept = chosen if true_rows is None else chosen[true_rows.to(chosen.device)]
        count.add_(torch.bincount(kept.reshape(-1).cpu(), minlength=count.numel() + 1)[: count.numel()])

    return module.register_forward_pre_hook(note, with_kwargs=True)
