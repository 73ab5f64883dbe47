"""Products of whole numbers: exact in any order, close to the weights that they stand for."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.spikes import Code, counts, potentials, trains
from inference_pio.kernels.spiking_product import (
    LEAST_BITS,
    from_counts,
    from_spikes,
    power_of_two,
    weight_bits,
    whole_weights,
    why_not_exact,
)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (3, 5, 9)])
def test_whole_weights_are_the_weights_times_thresholds(shape: tuple[int, ...]) -> None:
    weight, threshold = seeded(*shape), seeded(*shape[:-2], shape[-1], seed=1).abs() + 0.1
    weight[..., 0, :] = 0
    whole, exponent = whole_weights(weight, threshold, 15)
    wanted = weight.double() * threshold.double()[..., None, :]
    told = whole * power_of_two(exponent)[..., None]
    assert whole.dtype == exponent.dtype == torch.int32
    assert (told - wanted).abs().max() <= 2.0**-23 * wanted.abs().max()


def test_a_plans_weights_have_shapes_alone() -> None:
    whole, exponent = whole_weights(torch.empty(3, 5, 9, device="meta"), torch.empty(3, 9, device="meta"), 15)
    assert (whole.shape, exponent.shape, whole.device.type) == ((3, 5, 9), (3, 5), "meta")


@pytest.mark.parametrize("code", [Code("radix", 15, second=True), Code("rate", 7), Code("radix", 255, second=True)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (37, 5), (700, 3)])
def test_spikes_and_counts_and_integers_agree_to_the_bit(code: Code, inputs: int, outputs: int) -> None:
    weight, threshold = seeded(outputs, inputs) * 100, seeded(inputs, seed=1).abs().double() + 0.01
    held = potentials(seeded(4, inputs, seed=2) * code.reach / 3, threshold, code)
    whole, _ = whole_weights(weight, threshold, code.reach)

    def product(fired: torch.Tensor) -> torch.Tensor:
        return fired @ whole.double().T

    added = from_spikes(trains(held, code), product)
    assert torch.equal(added, from_counts(counts(held), product))
    order = torch.randperm(inputs, generator=torch.Generator().manual_seed(3))
    assert torch.equal(added, counts(held)[:, order] @ whole.double().T[order])
    by_hand = counts(held)[0].long() @ whole[0].long()
    assert int(added[0, 0]) == int(by_hand)


def test_sums_that_would_not_be_exact_are_refused() -> None:
    assert weight_bits(2**24, 2**20) < LEAST_BITS
    assert "fewer than 10 bits" in str(why_not_exact(2**24, 2**20))
    assert why_not_exact(16384, Code("radix", 255, second=True).reach) is None


def test_powers_of_two_are_exact() -> None:
    exponents = torch.arange(-300, 300)
    assert power_of_two(exponents).tolist() == [2.0**one for one in range(-300, 300)]
