"""What outputs count for is what their gradients say, and it foretells the divergence of a small error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.anatomy.side_by_side import weight_of
from inference_pio.calibration import output_pass
from inference_pio.calibration.held_out import HeldOut
from inference_pio.calibration.output_pass import OutputWeights, collect_outputs
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.errors import InvalidSetting
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.test_narrowed import text


class Noisy(nn.Module):
    def __init__(self, layer: nn.Module, size: float) -> None:
        super().__init__()
        self.weight, self.bias, self.size = weight_of(layer), layer.bias, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = nn.functional.linear(x, self.weight, self.bias)
        return out + self.size * torch.randn(out.shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])  # a router that changes its mind has no gradient
def test_it_foretells_the_divergence_of_a_small_error(name: str) -> None:
    model, source = tiny.build(name), text(24)
    path = "transformer.h.0.mlp.c_proj" if name == "gpt2" else "model.layers.0.self_attn.o_proj"
    before = fingerprint(model)
    counts = collect_outputs(model, source, [path])[path]
    assert before.differences(fingerprint(model)) == []
    size = 0.02
    held_out = HeldOut(model, source)
    with stood_in(model, {path: Noisy(model.get_submodule(path), size)}):
        measured = held_out.divergence(model)
    assert 0.5 * size**2 * float(counts.trace()) == pytest.approx(measured, rel=0.25)


def test_many_outputs_count_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny.build("llama"), "model.layers.1.mlp.up_proj"
    whole = collect_outputs(model, text(4), [path])[path]
    monkeypatch.setattr(output_pass, "MOST_SQUARE", 10)
    alone = collect_outputs(model, text(4), [path])[path]
    assert alone.shape == (len(whole),)
    assert float(alone.sum()) == pytest.approx(float(whole.trace()), rel=1e-5)


def test_padding_counts_for_nothing_and_seeds_for_all() -> None:
    model, path = tiny.build("llama"), "model.layers.0.mlp.down_proj"
    rows = torch.randint(1, 90, (4, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(rows)
    mask[:, :8] = 0
    padded = CalibrationSource("padded", ({"input_ids": rows, "attention_mask": mask},))
    other = rows.clone()
    other[:, :8] = 5
    same = CalibrationSource("padded", ({"input_ids": other, "attention_mask": mask},))
    found, again = (collect_outputs(model, source, [path])[path] for source in (padded, same))
    torch.testing.assert_close(found, again)
    assert not torch.equal(found, collect_outputs(model, padded, [path], seed=1)[path])


def test_a_model_without_logits_is_asked_by_chance() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    source = CalibrationSource("rows", ({"input": torch.randn(64, 6)},))
    counts = collect_outputs(model, source, ["2", "0"])
    torch.testing.assert_close(counts["2"], torch.eye(3, dtype=torch.float64), rtol=0.6, atol=0.6)
    assert counts["0"].shape == (5, 5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_has_no_gradients_is_told() -> None:
    class Hard(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach()

    source = CalibrationSource("rows", ({"input": torch.randn(8, 6)},))
    with pytest.raises(InvalidSetting, match="cannot be differentiated"):
        collect_outputs(nn.Sequential(nn.Linear(6, 5), Hard()), source, ["0"])


def test_gradients_that_overflow_are_told() -> None:
    class Steep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 3e38 * 3e38

    source = CalibrationSource("rows", ({"input": torch.full((8, 6), 1e-30)},))
    with pytest.raises(InvalidSetting, match=r"too large for torch\.float32"):
        collect_outputs(nn.Sequential(nn.Linear(6, 5, bias=False), Steep()), source, ["0"])


def test_the_first_reason_why_outputs_are_not_weighed_is_kept() -> None:
    class Hard(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach()

    source = CalibrationSource("rows", ({"input": torch.randn(8, 6)},))
    weights = OutputWeights(nn.Sequential(nn.Linear(6, 5)), source)
    assert weights.of(["0"])["0"].shape == (5, 5)
    assert weights.why_not is None
    weights = OutputWeights(nn.Sequential(nn.Linear(6, 5), Hard()), source)
    assert weights.of(["0"]) == {}
    assert "Sequential cannot be differentiated" in str(weights.why_not)
