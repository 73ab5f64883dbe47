from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from inference_pio.cli import app
from inference_pio.cli.compare import names_in
from tests.model_folder import QUICK


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_pio.integration.many_profiles.ProbeSettings", lambda: QUICK)


def compared(*words: str) -> Result:
    return CliRunner().invoke(app, ["compare", *words])


def test_one_table_one_json_and_one_page_hold_all_profiles(llama_folder: Path, tmp_path: Path) -> None:
    data_file, page = tmp_path / "c.json", tmp_path / "c.html"
    answer = compared(
        str(llama_folder), "--profiles", "lossless,balanced", "--json", str(data_file), "--report", str(page)
    )
    assert answer.exit_code == 0, answer.output
    assert "tiny-llama, 2 profiles" in answer.stdout
    assert f"report written to {page}" in answer.stdout
    data = json.loads(data_file.read_text())
    assert [one["profile"] for one in data["profiles"]] == ["lossless", "balanced"]
    assert "2 profiles compared" in page.read_text()


def test_quiet_says_nothing_and_writes(mute_folder: Path) -> None:
    answer = compared(str(mute_folder), "--profiles", "balanced", "--quiet", "--json")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["baseline_name"] == "plain bfloat16"
    assert answer.stderr == ""


def test_names_are_split_at_commas() -> None:
    assert names_in(" a,b ,c") == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["", ",", "a,,b", "a,", "a,a"])
def test_what_is_no_list_of_different_names_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        names_in(text)
