"""int8 as a format: one byte a weight, whatever the width."""

from __future__ import annotations

import torch

from inference_pio.formats.int8 import Int8Experts, Int8Linear
from tests.formats.help import linear


def test_every_width_is_taken_and_no_group_is_needed() -> None:
    layer = Int8Linear.from_linear(linear(7, 5))
    assert (layer.weight_int8.dtype, layer.weight_int8.shape, layer.weight_scale.shape) == (torch.int8, (5, 7), (5,))
    assert Int8Linear.why_not(7, 128) is None
    assert Int8Experts.format == Int8Linear.format == "int8"
