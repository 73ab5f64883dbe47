"""NIR segments: written and read back, run by our neurons and by snnTorch's, the layer's own sums to the bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.errors import ArtifactError, InvalidModel, InvalidSetting, MissingExtra
from inference_pio.kernels.spikes import Code, counts, potentials
from inference_pio.kernels.spiking_product import power_of_two
from inference_pio.manager import ModularOptimizationManager
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.nir_export import encoded, export_nir, run_segment, segment
from tests import tiny

TEXT = [[1 + place * place % 96 for place in range(24)]]
CODES = [Code("rate", 7), Code("rate", 7, second=True)]


def layer(code: Code) -> SpikingLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SpikingLinear(nn.Linear(9, 5), torch.rand(9, dtype=torch.float64) * 0.2 + 0.05, code)


def sums(one: SpikingLinear, x: torch.Tensor) -> torch.Tensor:
    return counts(potentials(x, one.threshold, one.code)) @ one.whole.double().T * power_of_two(one.exponent)


def folded(one: SpikingLinear) -> torch.Tensor:
    return one.whole * power_of_two(one.exponent)[:, None]


def inputs() -> torch.Tensor:
    return torch.randn(11, 9, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_segment_read_back_adds_up_to_the_layers_sums(code: Code, tmp_path: Path) -> None:
    nir, one, x = pytest.importorskip("nir"), layer(code), inputs()
    nir.write(str(tmp_path / "one.nir"), segment(one.threshold, folded(one), code))
    again = nir.read(str(tmp_path / "one.nir"))
    assert torch.equal(run_segment(again, encoded(x, one.threshold, code), code.steps), sums(one, x))


@pytest.mark.parametrize("code", CODES, ids=str)
def test_snntorchs_neuron_fires_as_often(code: Code) -> None:
    snntorch = pytest.importorskip("snntorch")
    one, x = layer(code), inputs()
    neuron = snntorch.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract")
    given, membrane, fired = encoded(x, one.threshold, code), torch.zeros(()).double(), 0.0
    for step in range(code.steps + 1):  # its membrane is reset one step later than ours
        spikes, membrane = neuron(given if step == 0 else torch.zeros_like(given), membrane)
        fired = fired + spikes.double()
    weight = folded(one)
    parts = [weight, -weight] + ([code.base * weight, -code.base * weight] if code.second else [])
    assert torch.equal(fired @ torch.cat(parts, 1).T, sums(one, x))


def converted(name: str, **asked: Any) -> Any:
    model = tiny.build(name)
    settings = {"text": TEXT, "levels": 7, "coding": "rate", **asked}
    ModularOptimizationManager().apply_optimizations(model, ["snn_conversion"], parameters={"snn_conversion": settings})
    return model


def test_a_model_is_written_matrix_by_matrix_with_what_the_host_does(tmp_path: Path) -> None:
    nir, model = pytest.importorskip("nir"), converted("qwen3_moe")
    folder = export_nir(model, tmp_path / "segments")
    told = json.loads((folder / "manifest.json").read_text())
    names = {one["name"] for one in told["segments"]}
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.experts.down.7"} <= names
    assert len(names) == len(list(folder.glob("*.nir"))) == 8 + 3 + 16
    assert told["products_of_two_signals"] == [
        f"model.layers.{layer}.self_attn.inference_pio_spikes" for layer in (0, 1)
    ]
    assert {"SiLUActivation", "Qwen3MoeRMSNorm", "Qwen3MoeTopKRouter"} <= set(told["host_operations"])
    one = model.model.layers[0].mlp.up_proj
    graph = nir.read(str(folder / "model.layers.0.mlp.up_proj.nir"))
    x = torch.randn(3, 64)
    assert torch.equal(run_segment(graph, encoded(x, one.threshold, one.code), told["steps"]), sums(one, x))
    export_nir(model, folder)  # an older export is replaced


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nir")
    with pytest.raises(InvalidModel, match="apply snn_conversion first"):
        export_nir(tiny.build("llama"), tmp_path / "a")
    with pytest.raises(InvalidSetting, match="coding='rate'"):
        export_nir(converted("llama", coding="radix"), tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds something else"):
        export_nir(converted("llama"), tmp_path / "c")
    assert not [name for name in ("a", "b") if (tmp_path / name).exists()]
    assert (tmp_path / "c" / "mine.txt").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(MissingExtra, match=r"inference-pio\[snn\]"):
        export_nir(tiny.build("llama"), tmp_path / "d")
