"""Without a text the smallest weights go, of every kind of unit, and the others stay to the bit."""

from __future__ import annotations

import torch

from inference_pio.anatomy.prunable import Prunable
from inference_pio.anatomy.prunable_units import prunable_units
from inference_pio.calibration.by_weights import narrow_by_weights
from tests import tiny


def test_units_of_small_weights_go() -> None:
    model = tiny.build("glm4_moe")
    units = {one.path: one for one in prunable_units(model, ["experts", "kv_heads"]) if isinstance(one, Prunable)}
    with torch.no_grad():
        for one in units.values():
            if one.unit == "experts":
                one.weights["experts.down_proj"][0] *= 1e-3
            elif one.unit == "kv_heads":
                one.weights["o_proj.weight"][:, : one.block] = 0  # type: ignore[attr-defined]
            elif one.unit == "mlp":
                one.weights["up_proj.weight"][0] = 0
            else:
                one.weights["gate_up_proj"][:, 0] = 0
    found = narrow_by_weights(units, {path: one.width - 1 for path, one in units.items()})
    for path, kept in found.taken.kept.items():
        assert kept.min() == 1, path
        assert kept.shape[-1] == units[path].width - 1
    head = units["model.layers.0.self_attn"]
    assert torch.equal(found.taken.weights[head.path]["k_proj.weight"], head.weights["k_proj.weight"][16:])
    assert found.to_json()["held_out_divergence"] == {}
