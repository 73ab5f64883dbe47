from __future__ import annotations

from typing import Any

import torch
from torch import nn

from inference_pio.calibration import CalibrationSource
from inference_pio.calibration.forward import forward, run_batches
from inference_pio.calibration.rows import Rows
from inference_pio.manager import ModularOptimizationManager
from tests import tiny


class Twice(nn.Module):
    """Calls its first layer twice, so that reaching it once is not enough."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.given: dict[str, Any] = {}

    def forward(self, rows: torch.Tensor, use_cache: bool = True) -> torch.Tensor:
        self.given = {"use_cache": use_cache, "grad": torch.is_grad_enabled()}
        return self.last(self.first(self.first(rows)))


def test_a_forward_takes_no_cache_and_no_gradients_unless_told() -> None:
    model = Twice()
    forward(model, {"rows": torch.ones(1, 2)})
    assert model.given == {"use_cache": False, "grad": False}
    forward(model, {"rows": torch.ones(1, 2), "use_cache": True})
    assert model.given["use_cache"] is True


def test_a_layer_that_is_called_twice_is_waited_for() -> None:
    model, rows, ends = Twice(), Rows(gram=False), []
    model.last.register_forward_pre_hook(lambda *_: ends.append("last"))
    handle = model.first.register_forward_pre_hook(lambda _, args: rows.note("first", args[0]))
    source = CalibrationSource("two", ({"rows": torch.ones(1, 2)},) * 3)
    run_batches(model, source, rows, ["first"], None)
    handle.remove()
    assert sum(one.count for one in rows.statistics()) == 6
    assert len(ends) == 1


def test_what_works_piece_by_piece_works_whole_meanwhile() -> None:
    """Whoever watches layers counts their calls, and masks their rows."""
    model: Any = tiny.build("qwen3_vl")
    manager = ModularOptimizationManager()
    sizes = {"prefill_chunk_size": 3, "mlp_chunk_tokens": 2}
    manager.apply_optimizations(model, ["activation_offloading"], parameters={"activation_offloading": sizes})
    seen: list[int] = []
    handle = model.model.language_model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].shape[-2])
    )
    forward(model, tiny.inputs("qwen3_vl", model))
    handle.remove()
    assert seen == [tiny.TEXT_TOKENS]
