"""Checkpoints in files of bounded size are what the library reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from inference_pio.artifact.shards import INDEX, WHOLE, Shards


def test_what_fits_is_one_file_without_an_index(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    both = torch.arange(8.0)
    shards.add("low", both[:6])
    shards.add("high", both[4:])  # what two views share is written twice
    shards.add("turned", torch.ones(2, 3).t())
    shards.close()
    assert [path.name for path in tmp_path.iterdir()] == [WHOLE]
    found = load_file(tmp_path / WHOLE)
    assert found["high"].tolist() == [4, 5, 6, 7]
    assert found["turned"].shape == (3, 2)
    assert shards.total_bytes == 4 * 16


def test_more_goes_into_files_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    shards = Shards(tmp_path, shard_bytes=40)
    for number in range(5):
        shards.add(f"t{number}", torch.full((4,), float(number)))
    shards.add("large", torch.zeros(100))
    shards.close()
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 16 + 400
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)
    assert index["weight_map"].keys() == {*(f"t{number}" for number in range(5)), "large"}
