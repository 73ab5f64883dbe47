"""Training: the walk is the library's forward, a resumed run is the same run, an export loads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripts.reference import train, walk
from scripts.reference.architectures import NAMES, build, configuration
from scripts.reference.batches import Maker
from scripts.reference.captions import GRID
from scripts.reference.export import WEIGHTS, export, load
from scripts.reference.feeder import Feeder
from scripts.reference.optimizer import orthogonal
from scripts.reference.schedule import Schedule
from scripts.reference.step import Stepper
from scripts.reference.tokenizer import IMAGE
from tokenizers import Tokenizer

from tests.sweep import rotating, turn_of_this_commit


def _small(name: str, seed: int) -> Any:
    """The architecture at a size whose steps take no time."""
    config = configuration(name)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 64, 64
    config.layer_types = ["full_attention"] * 2
    return build(name, seed, config)


def _maker(tokenizer: Tokenizer, tokens: np.ndarray, name: str) -> Maker:
    return Maker(tokenizer, tokens, 0, name == "qwen3_vl", tokens_per_step=256, pictures_per_step=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_walk_gives_what_the_librarys_forward_gives(name: str, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    batch = _maker(tokenizer, tokens, name).batch(0, 128)
    ids, inputs, pictures = torch.from_numpy(batch.tokens[:, :-1]), {}, None
    model = build(name, 0).float()
    _wake(model)
    if batch.pixels is not None and batch.at is not None:
        pictures = walk.Pictures(torch.from_numpy(batch.pixels), torch.from_numpy(batch.at))
        shown = (ids == tokenizer.token_to_id(IMAGE)).long()
        grids = torch.tensor([[1, GRID, GRID]] * 2)
        inputs = {"pixel_values": pictures.patches, "image_grid_thw": grids, "mm_token_type_ids": shown}
    positions = None if batch.positions is None else torch.from_numpy(batch.positions)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False, **inputs).logits
        walk.prepare(model)
        logits = model.lm_head(walk.hidden_states(model, ids, positions, pictures))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def _wake(model: Any) -> None:
    """Layers start silent; here each must be heard."""
    for weight in model.parameters():
        if not weight.any():
            weight.normal_(std=0.05)


@pytest.mark.parametrize("name", rotating(NAMES, turn_of_this_commit()))
def test_a_step_moves_every_weight_that_saw_data(name: str, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    model = build(name, 0)
    _wake(model)
    stepper, before = Stepper(model), {name: weight.clone() for name, weight in model.named_parameters()}
    maker = _maker(tokenizer, tokens, name)
    for step in range(6):  # in bf16 a norm of 4 stays where it is until its master has moved by 0.016
        stepper.step(maker.batch(step, 128), rate=1.0)
    still = [key for key, weight in model.named_parameters() if torch.equal(weight, before[key])]
    assert still == []
    assert stepper.take_sums()[:2, 2].min() > 0


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe"])
def test_a_resumed_run_ends_on_the_same_bits(
    name: str, tokenizer: Tokenizer, tokens: np.ndarray, tmp_path: Path
) -> None:
    def run(saved: Path, steps: int) -> dict[str, torch.Tensor]:
        feeder = Feeder(_maker(tokenizer, tokens, name))
        train.train(_small(name, 0), feeder, Schedule(0, steps=steps, longest=128), saved, quiet=True)
        return load_file(saved)

    whole = run(tmp_path / "whole.safetensors", 3)
    model, feeder = _small(name, 0), Feeder(_maker(tokenizer, tokens, name))
    for _ in range(3):
        train.train(
            model,
            feeder,
            Schedule(0, steps=3, longest=128),
            tmp_path / "cut.safetensors",
            stop_after_steps=1,
            quiet=True,
        )
        model = _small(name, 1)
    cut = load_file(tmp_path / "cut.safetensors")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_loads_back_to_the_same_bits(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = build(name, 0)
    walk.prepare(model)
    export(model, tokenizer, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size <= 8_000_000
    again = load(tmp_path)
    expected = model.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(expected[key], tensor) for key, tensor in again.state_dict().items())


def test_muon_makes_steps_whose_directions_are_all_of_one_size() -> None:
    stretched = torch.randn(2, 24, 48) * torch.logspace(0, 2, 48)
    sizes = torch.linalg.svdvals(orthogonal(stretched))
    assert sizes.max() < 1.3
    assert sizes.median() > 0.6


def test_processes_make_the_batches_that_would_be_made_on_the_spot(tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    maker = _maker(tokenizer, tokens, "qwen3")
    feeder = Feeder(maker, workers=1)
    try:
        for step, length in ((0, 128), (1, 128), (2, 64)):
            ours, theirs = maker.batch(step, length), feeder.batch(step, length)
            assert np.array_equal(ours.tokens, theirs.tokens)
            assert np.array_equal(ours.kinds, theirs.kinds)
    finally:
        feeder.close()
