from __future__ import annotations

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from inference_pio.cli import app
from inference_pio.cli.list import _table
from inference_pio.configuration import get_config_manager
from inference_pio.manager import get_optimization_manager
from inference_pio.optimizations.attention.flash_attention import FlashAttention


def listed(*words: str) -> str:
    answer = CliRunner().invoke(app, ["list", *words])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_all_three_are_listed_unless_one_is_asked_for() -> None:
    assert list(json.loads(listed("--json"))) == ["optimizations", "families", "profiles"]
    assert list(json.loads(listed("--json", "profiles"))) == ["profiles"]


def test_optimizations_are_those_of_the_registry() -> None:
    rows = json.loads(listed("optimizations", "--json"))["optimizations"]
    assert [row["name"] for row in rows] == get_optimization_manager().get_available_optimizations()
    assert {row["available_here"] for row in rows} == {"yes"}


def test_what_is_not_available_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlashAttention, "unavailable", classmethod(lambda cls: "needs a moon"))
    assert "needs a moon" in listed("optimizations")


def test_families_and_profiles_are_those_of_the_config_manager() -> None:
    data = json.loads(listed("--json"))
    manager = get_config_manager()
    assert [row["name"] for row in data["families"]] == manager.list_families()
    assert [row["name"] for row in data["profiles"]] == manager.list_profiles()
    glm = data["families"][0]
    assert glm["optimizations"] == ["flash_attention", "kernel_fusion", "tensor_compression"]
    assert "glm4_moe_lite" in glm["model_types"]


def test_the_tables_hold_the_names_and_members() -> None:
    text = listed()
    assert "tensor_compression (format=int8)" in text
    assert "memory_efficient" in text
    assert "mistral" in text


def test_names_are_whole_on_a_narrow_terminal() -> None:
    console = Console(width=40)
    with console.capture() as captured:
        console.print(_table("profiles", [{"name": "memory_efficient", "members": {"flash_attention": {}}}]))
        console.print(_table("x", [{"name": "x" * 60}]))
    assert captured.get().count("x") == 61
    assert "…" not in captured.get()


def test_an_unknown_kind_is_wrong_usage() -> None:
    answer = CliRunner().invoke(app, ["list", "models"])
    assert answer.exit_code == 2
    assert "models" in answer.stderr
