"""fp8 as a format: one byte a weight, whatever the width; its codes are bits that no cast touches."""

from __future__ import annotations

import torch

from inference_pio.formats.fp8 import Fp8Experts, Fp8Linear
from tests.formats.help import linear


def test_every_width_is_taken_and_codes_are_the_bits_of_e4m3() -> None:
    original = linear(7, 5)
    layer = Fp8Linear.from_linear(original)
    assert (layer.weight_fp8.dtype, layer.weight_fp8.shape, layer.weight_scale.shape) == (torch.uint8, (5, 7), (5,))
    values = layer.weight_fp8.view(torch.float8_e4m3fn).float() * layer.weight_scale.float()[:, None]
    assert torch.equal(layer.dequantize(), values)
    assert (values - original.weight).abs().max() < 0.04 * original.weight.abs().max()
    assert Fp8Linear.why_not(7, 128) is None
    assert Fp8Experts.format == Fp8Linear.format == "fp8"
