"""What every format promises of its codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inference_pio.formats.known import format_named
from inference_pio.formats.weight_format import WeightFormat
from tests.formats.help import ALL_FORMATS, EACH_FORMAT, GROUP, STEP, seeded


@EACH_FORMAT
def test_a_product_is_that_of_the_weights_that_codes_stand_for(name: str) -> None:
    kind, weight, x = format_named(name).linear, seeded(48, 64), seeded(5, 64, seed=1)
    codes, scale = kind.quantize(weight, GROUP)
    stands_for = kind.dequantized(codes, scale, torch.float32)
    assert (stands_for - weight).abs().max() <= STEP[name] * weight.abs().max()
    assert (kind.product(x, codes, scale) - x @ stands_for.T).abs().max() < 0.02 * (x @ stands_for.T).abs().max()


@EACH_FORMAT
def test_experts_are_quantized_one_by_one(name: str) -> None:
    kind, weight = format_named(name).experts, seeded(3, 64, 64)
    together = kind.dequantized(*kind.quantize(weight, GROUP), torch.float32)
    for expert in range(3):
        assert torch.equal(kind.dequantized(*kind.quantize(weight[expert], GROUP), torch.float32), together[expert])


@EACH_FORMAT
def test_settling_codes_and_taking_them_along_are_inverse(name: str) -> None:
    kind = format_named(name).linear
    codes, _ = kind.quantize(seeded(128, 64), GROUP)
    assert torch.equal(kind.portable(kind.settled(codes)), codes)
    assert torch.equal(kind.settled(kind.settled(codes)), kind.settled(codes))


class Counting(TorchDispatchMode):
    """How many operations torch is asked for."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


@EACH_FORMAT
def test_shapes_without_values_cost_nothing(name: str) -> None:
    kind = format_named(name).linear
    with Counting() as counting:
        codes, scale = kind.quantize(torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta"), GROUP)
    assert counting.count <= 6
    assert codes.is_meta
    assert scale.is_meta
    real = kind.quantize(seeded(8, 4096).bfloat16(), GROUP)
    assert [one.shape[-1] for one in real] == [codes.shape[-1], *real[1].shape[-1:]]


@EACH_FORMAT
def test_a_backend_is_named_for_each_device(name: str) -> None:
    kind = format_named(name).linear
    assert kind.backend(torch.device("cuda", 0), torch.float64) == "dequantize"
    assert kind.backend(torch.device("cpu"), torch.float64) == "dequantize"
    assert isinstance(kind.backend(torch.device("cpu"), torch.bfloat16), str)


def test_what_stands_beside_codes_is_scales_unless_a_format_says_otherwise() -> None:
    assert {name for name in ALL_FORMATS if format_named(name).linear.beside != ("scale",)} == {"exponent12"}
    assert WeightFormat.why_not_module(torch.nn.Linear(1, 1)) is None


def test_a_format_must_say_how_it_rounds_and_multiplies() -> None:
    one = torch.ones(1, 1)
    for call in (
        lambda: WeightFormat.quantize(one, 1), lambda: WeightFormat.quantize_with_gram(one, one, 1, 1),
        lambda: WeightFormat.dequantized(one, one, torch.float32), lambda: WeightFormat.product(one, one, one),
        lambda: WeightFormat.backend(torch.device("cpu"), torch.float32),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError):
            call()
