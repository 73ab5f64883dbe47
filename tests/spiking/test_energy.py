"""Energies are prices times counts, with memory traffic beside."""

from __future__ import annotations

from inference_pio.spiking.energy import PICOJOULES_A_BYTE, PRESETS, energy

COUNTED = {
    "activations": 1000, "spikes": 600, "accumulates": 600_000, "multiplies": 1_000_000, "neuron_steps": 4000,
    "results": 1000,
}  # fmt: skip


def test_each_preset_is_its_prices_times_the_counts() -> None:
    found = energy(COUNTED)
    assert set(found) == set(PRESETS) == {"45nm fp32", "45nm fp16", "45nm int8"}
    assert found["45nm fp32"]["dense_uj"] == 4.6
    assert found["45nm fp32"]["spiking_uj"] == 0.54
    assert found["45nm fp32"]["compute_ratio"] == 0.1174
    assert found["45nm int8"]["compute_ratio"] == round(0.03 * 0.6 / 0.23, 4)
    dense, spiking = 1_002_000 * 2 * PICOJOULES_A_BYTE, 609_000 * 2 * PICOJOULES_A_BYTE
    with_memory = (0.6e6 * 0.4 + spiking) / (1e6 * 1.5 + dense)
    assert found["45nm fp16"]["ratio_with_memory"] == round(with_memory, 4)


def test_nothing_computed_takes_nothing() -> None:
    assert energy(dict.fromkeys(COUNTED, 0))["45nm fp32"]["compute_ratio"] == 0.0
