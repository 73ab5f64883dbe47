from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from inference_pio.cli import app
from inference_pio.configuration import ConfigManager

NO_MEMBER = [word for name in ConfigManager().get_profile("lossless").default_settings for word in ("--disable", name)]


def planned(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


def test_a_plan_is_shown_with_the_models_name(llama_folder: Path) -> None:
    answer = planned(str(llama_folder))
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith("plan for tiny-llama, profile balanced\n")
    assert "1. apply tensor_compression" in answer.stdout
    assert "2. apply flash_attention" in answer.stdout
    assert "3. apply kernel_fusion" in answer.stdout


def test_the_json_holds_the_plan_and_no_measurement(llama_folder: Path) -> None:
    answer = planned(str(llama_folder), "--profile", "lossless", "--json")
    data = json.loads(answer.stdout)
    assert (data["model"], data["profile"], data["receipts"]) == ("tiny-llama", "lossless", [])
    assert [step["name"] for step in data["plan"]["steps"]] == ["flash_attention", "kernel_fusion"]
    assert data["baseline"] is data["optimized"] is data["comparison"] is None


def test_a_plan_names_the_class_of_hardware_it_was_made_for(llama_folder: Path) -> None:
    words = (str(llama_folder), "--profile", "performance", "--json")
    here = json.loads(planned(*words).stdout)["plan"]
    there = json.loads(planned(*words, "--hardware", "ampere_ada").stdout)["plan"]
    assert (here["hardware"], there["hardware"]) == (
        "cpu (the device is cpu, no NVIDIA GPU)",
        "ampere_ada (as asked for)",
    )
    formats = [plan["steps"][0]["parameters"]["format"] for plan in (here, there)]
    assert formats == ["int4", "int8"]
    assert (
        "\n  for the hardware class hopper (as asked for)\n"
        in planned(str(llama_folder), "--hardware", "hopper").stdout
    )


def test_a_profile_that_asks_for_more_than_the_machine_has_is_refused_in_the_plan(
    llama_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: tight\ndefault_settings: {tensor_compression: }\n"
        "resource_constraints: {max_memory_usage_ratio: 1.0e-9}\n"
    )
    answer = planned(str(llama_folder), "--profile", str(file))
    assert answer.exit_code == 1
    assert "max_memory_usage_ratio" in answer.stderr
    assert "Nothing was touched" in answer.stderr


def test_orders_change_the_plan(llama_folder: Path) -> None:
    words = ("--disable", "flash_attention", "--set", "tensor_compression.format=int8", "--json", "-")
    steps = json.loads(planned(str(llama_folder), *words).stdout)["plan"]["steps"]
    assert [(step["name"], step["source"]) for step in steps] == [
        ("tensor_compression", "by name"),
        ("kernel_fusion", "profile 'balanced'"),
    ]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--profile", "fast"], 1, "unknown profile 'fast'"),
        (["--hardware", "h100"], 1, "unknown hardware class 'h100'"),
        (["--enable", "flash"], 1, "unknown optimization 'flash'. Did you mean 'flash_attention'?"),
        (["--disable", "flash"], 1, "unknown optimization 'flash'"),
        (["--set", "flash_attention.triton=1"], 1, "unknown parameter 'triton'"),
        (["--set", "flash_attention.use_triton=maybe"], 1, "use_triton"),
        (["--set", "flash_attention"], 2, "NAME.KEY=VALUE"),
        (["--enable", "flash_attention", "--disable", "flash_attention"], 1, "on and off"),
        (["--profile", "lossless", *NO_MEMBER], 1, "nothing is left"),
        (["--device", "moon"], 1, "device='moon'"),
        (["--dtype", "int3"], 2, "int3"),
        (["--json", "/proc/out.json"], 1, "cannot write /proc/out.json"),
        (["another"], 2, "another"),
    ],
)
def test_what_is_wrong_is_told_without_a_traceback(llama_folder: Path, words: list[str], code: int, told: str) -> None:
    answer = planned(str(llama_folder), *words)
    assert answer.exit_code == code
    assert told in answer.stderr
    assert "Traceback" not in answer.output
    assert answer.stdout == ""


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    answer = planned(str(tmp_path / "nowhere"))
    assert answer.exit_code == 1
    assert "there is no folder or file" in answer.stderr


def test_without_a_model_it_is_wrong_usage() -> None:
    assert planned().exit_code == 2
