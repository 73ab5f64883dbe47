from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference_pio.cli import app
from inference_pio.cli.profile_file import profile_named
from inference_pio.configuration import GlobalOptimizationProfile, get_config_manager
from inference_pio.errors import InvalidSetting


def written(path: Path, name: str = "mine", member: str = "flash_attention") -> Path:
    profile = GlobalOptimizationProfile(name=name, default_settings={member: {}})
    get_config_manager().save_global_profile(profile, path)
    return path


@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json", ".YAML"])
def test_a_profile_of_ones_own_is_planned_from_its_file(tmp_path: Path, llama_folder: Path, ending: str) -> None:
    words = ["plan", str(llama_folder), "--profile", str(written(tmp_path / f"my{ending}")), "--json"]
    for _ in range(2):  # the same one twice is no contradiction
        answer = CliRunner().invoke(app, words)
        assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert data["profile"] == "mine"
    assert [step["name"] for step in data["plan"]["steps"]] == ["flash_attention"]


def test_a_word_is_a_name() -> None:
    assert profile_named("balanced") == "balanced"
    assert profile_named("fast") == "fast"  # refused where it is used, with the nearest known names


def test_a_family_config_is_told_apart_with_the_way_to_apply_it(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    get_config_manager().save_model_config(get_config_manager().get_family_config("qwen"), path)
    with pytest.raises(InvalidSetting, match=r"holds the config of a family.*apply_optimizations_by_config"):
        profile_named(str(path))


def test_it_takes_the_place_of_no_other_profile(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"my\.yaml: there is another profile 'balanced' already"):
        profile_named(str(written(tmp_path / "my.yaml", "balanced")))
    assert len(get_config_manager().get_profile("balanced").members) == 3


def test_what_is_no_profile_is_told_with_its_file(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "other.yaml").write_text("familiar: glm\n")
    with pytest.raises(InvalidSetting, match=r"other\.yaml: unknown parameter 'familiar'"):
        profile_named(str(tmp_path / "other.yaml"))
    answer = CliRunner().invoke(
        app, ["plan", str(llama_folder), "--profile", str(written(tmp_path / "my.yaml", member="flash"))]
    )
    assert answer.exit_code == 1
    assert "unknown optimization 'flash'. Did you mean 'flash_attention'?" in answer.stderr
