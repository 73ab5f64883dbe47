"""The picture shows each spike that fires where and when it does, and a bar a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidModel, UnknownName
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.plot import DOWN, UP, draw_spikes, raster
from inference_pio.spiking.tally import Tally


def net() -> Any:
    code, threshold = Code("radix", 7), torch.full((3,), 1.0, dtype=torch.float64)
    return nn.Sequential(SpikingLinear(nn.Linear(3, 2), threshold, code).tell("first", Tally()))


ROWS = torch.tensor([[5.0, 0.0, -1.0], [0.0, 2.0, 0.0]])


def test_a_raster_tells_step_by_step_what_each_neuron_does() -> None:
    assert raster(net()[0], ROWS).tolist() == [[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, -1, 0, 0, 0]]


def test_the_picture_has_a_dot_a_spike_and_a_bar_a_layer(tmp_path: Path) -> None:
    drawn = draw_spikes(net(), {"input": ROWS}, tmp_path / "spikes.svg")
    root = ElementTree.fromstring(drawn.read_text())
    rects = [one.attrib for one in root if one.tag.endswith("rect")]
    dots = [(one["x"], one["y"], one["fill"]) for one in rects if one["width"] == "2"]
    assert dots == [("20", "30", UP), ("26", "30", UP), ("32", "33", UP), ("26", "36", DOWN)]
    assert [one.text for one in root if one.text and one.text.startswith("0.")] == ["0.67"]


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="spiking linear layer 'second'"):
        draw_spikes(net(), {"input": ROWS}, tmp_path / "a.svg", layer="second")
    with pytest.raises(InvalidModel, match="apply snn_conversion first"):
        draw_spikes(nn.Linear(2, 2), {"input": ROWS}, tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()
