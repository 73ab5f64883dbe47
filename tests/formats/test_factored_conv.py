"""Three convolutions are the one they stand for, with its strides and padding, and fewer numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.formats.factored_conv import FactoredConv, core_channels, why_no_core


def chance(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


CASES = [
    (nn.Conv1d, {"kernel_size": 3, "padding": 1, "stride": 2}, (12,)),
    (nn.Conv2d, {"kernel_size": (3, 5), "padding": "same", "dilation": 2, "bias": False}, (9, 8)),
    (nn.Conv3d, {"kernel_size": 2, "stride": (1, 2, 1)}, (4, 5, 6)),
]


@pytest.mark.parametrize(("kind", "how", "size"), CASES)
def test_with_all_channels_it_is_the_convolution(kind: type[nn.Module], how: dict, size: tuple[int, ...]) -> None:
    conv = kind(6, 10, **how)
    made = FactoredConv.from_conv(conv, (10, 6))
    assert made.out_of.bias is conv.bias
    x = chance(2, 6, *size)
    torch.testing.assert_close(made(x), conv(x), rtol=1e-4, atol=1e-5)
    few = FactoredConv.from_conv(conv, (4, 3))
    assert few(x).shape == conv(x).shape
    assert few.core.weight.shape[:2] == (4, 3)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("sides", [(64, 64), (32, 128), (128, 48)])
def test_channels_leave_the_share_that_was_asked_for(ratio: float, sides: tuple[int, int]) -> None:
    conv = nn.Conv2d(*sides, 3)
    channels = core_channels(conv, ratio, 4)
    assert channels is not None
    made = FactoredConv.from_conv(conv, channels, values=False)
    numbers = sum(part.numel() for name, part in made.named_parameters() if name.endswith("weight"))
    assert 0.6 * (1 - ratio) * conv.weight.numel() <= numbers <= (1 - ratio) * conv.weight.numel()


def test_what_has_no_core_has_its_reason() -> None:
    assert "2 groups" in (why_no_core(nn.Conv2d(4, 4, 3, groups=2)) or "")
    assert "reflect" in (why_no_core(nn.Conv2d(4, 4, 3, padding_mode="reflect")) or "")
    assert "one tap" in (why_no_core(nn.Conv1d(4, 4, 1)) or "")
    assert "overridden" in (why_no_core(nn.ConvTranspose2d(4, 4, 3)) or "")
    assert why_no_core(nn.Conv3d(4, 4, 2)) is None
    assert core_channels(nn.Conv2d(6, 6, 3), 0.5, 8) is None


def test_an_original_kernel_is_refused() -> None:
    conv = nn.Conv2d(6, 6, 3)
    with pytest.raises(RefusedOnOptimized, match="in three parts"):
        nn.Sequential(FactoredConv.from_conv(conv, (4, 4))).load_state_dict({"0.weight": conv.weight}, strict=False)


@pytest.mark.parametrize(("kind", "how", "size"), CASES)
def test_what_a_model_reckons_with_is_told_as_before(kind: type[nn.Module], how: dict, size: tuple[int, ...]) -> None:
    conv = kind(6, 10, **how)
    made, x = FactoredConv.from_conv(conv, (4, 3)), chance(2, 6, *size)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(made, name) == getattr(conv, name), name
    assert torch.equal(made(input=x), made(x))
