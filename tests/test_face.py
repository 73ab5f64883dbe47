"""The package as a stranger meets it: its names, what importing it costs, its two import roots."""

from __future__ import annotations

import ast
import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import inference_pio
from tests.sweep import rotating, turn_of_this_commit

ROOT = Path(__file__).parents[1]
DOCUMENTED = {
    "optimization_integration": """
        apply_glm_optimizations apply_qwen_optimizations apply_model_family_optimizations apply_optimizations_by_config
        create_optimization_pipeline update_model_optimization get_model_optimization_status
        get_supported_optimizations reset_model_optimizations""",
    "optimization_manager": """
        ModularOptimizationManager OptimizationConfig OptimizationInterface OptimizationRegistry OptimizationType
        get_optimization_manager""",
    "optimization_config": "ModelFamily ModelOptimizationConfig GlobalOptimizationProfile get_config_manager",
}
SHORT = {"optimize", "optimized", "plan", "restore", "save", "load", "load_pretrained", "errors"}


def in_fresh_python(code: str, *, path: Path | None = None, cwd: Path = ROOT) -> str:
    """What a new interpreter prints; its path is `path`, or what is installed."""
    given = [sys.executable, "-c", code]
    beside = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]  # dependencies
    environment = {"PYTHONPATH": os.pathsep.join([str(path or ROOT / "src"), *beside]), "PATH": ""}
    return subprocess.run(given, check=True, capture_output=True, text=True, cwd=cwd, env=environment).stdout


def test_all_is_what_is_documented_and_the_short_face() -> None:
    documented = {name for names in DOCUMENTED.values() for name in names.split()}
    assert set(inference_pio.__all__) == documented | SHORT
    assert inference_pio.__all__ == sorted(inference_pio.__all__)


@pytest.mark.parametrize("name", inference_pio.__all__)
def test_every_name_of_all_is_there_and_listed(name: str) -> None:
    assert getattr(inference_pio, name) is not None
    assert name in dir(inference_pio)


def test_types_and_runtime_name_the_same_things() -> None:
    tree = ast.parse(Path(inference_pio.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {alias.name for statement in blocks[0].body for alias in statement.names}
    assert typed == set(inference_pio.__all__)


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'optimise'"):
        inference_pio.optimise


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_documented_paths_hold_the_documented_names(module: str) -> None:
    found = importlib.import_module(f"inference_pio.common.optimization.{module}")
    for name in DOCUMENTED[module].split():
        assert getattr(found, name) is getattr(inference_pio, name)
        assert name in found.__all__


def test_plan_stays_the_function_when_its_room_is_imported() -> None:
    import inference_pio.plan
    import inference_pio.plan.order

    assert callable(inference_pio.plan)
    assert inference_pio.plan is inference_pio.integration.plan


def test_importing_loads_no_torch_and_is_quick() -> None:
    code = """
import sys, time
started = time.perf_counter()
import inference_pio
inference_pio.__all__, dir(inference_pio), inference_pio.errors.InferencePioError, inference_pio.ModelFamily
print([time.perf_counter() - started, sorted({"torch", "transformers", "numpy"} & set(sys.modules))])
"""
    answers = [json.loads(in_fresh_python(code).replace("'", '"')) for _ in range(3)]
    assert all(loaded == [] for _, loaded in answers)
    assert statistics.median(seconds for seconds, _ in answers) < 2.0  # configuration read too, on a busy machine


def test_the_bare_import_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import inference_pio; print(time.perf_counter() - t)"
    assert statistics.median(float(in_fresh_python(code)) for _ in range(5)) < 0.3


BOTH_ROOTS = """
import json
{imports}
from inference_pio.common.optimization.optimization_manager import get_optimization_manager as ours
from src.inference_pio.common.optimization.optimization_manager import get_optimization_manager as theirs
from src.inference_pio.errors import InferencePioError
from src.inference_pio.configuration.families import ModelFamily
import inference_pio.contract.site, src.inference_pio.contract.site, sys
real = sys.modules["inference_pio"]
print(json.dumps([
    ours is theirs, ours() is theirs(), InferencePioError is real.errors.InferencePioError,
    ModelFamily is real.ModelFamily, sys.modules["src.inference_pio"] is real,
    sys.modules["src.inference_pio.contract.site"] is sys.modules["inference_pio.contract.site"],
    real.contract.site.__spec__.name == "inference_pio.contract.site",
]))
"""


ROOTS = [
    "import inference_pio, src.inference_pio",
    "import src.inference_pio, inference_pio",
    "import src.inference_pio",
]
PLACES = {"not installed": ROOT, "installed": ROOT / "src"}


@pytest.mark.parametrize(
    "way", rotating([(place, imports) for imports in ROOTS for place in PLACES], turn_of_this_commit())
)
def test_both_import_roots_are_one_package(way: tuple[str, str]) -> None:
    path, imports = PLACES[way[0]], way[1]
    if path == ROOT and imports.startswith("import inference_pio"):
        imports = "import src.inference_pio; " + imports  # where it is not installed, the checkout's name comes first
    answers = json.loads(
        in_fresh_python("import sys; sys.path.append('.')\n" + BOTH_ROOTS.format(imports=imports), path=path)
    )
    assert all(answers), answers


def test_both_import_roots_are_one_package_in_this_very_process() -> None:
    ours = importlib.import_module("inference_pio.common.optimization.optimization_manager")
    theirs = importlib.import_module("src.inference_pio.common.optimization.optimization_manager")
    assert theirs is ours
    assert importlib.import_module("src.inference_pio") is inference_pio


def test_a_module_that_is_not_there_is_told_under_the_name_that_was_asked() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"src\.inference_pio\.nothing"):
        importlib.import_module("src.inference_pio.nothing")


def test_the_module_is_the_command_line() -> None:
    told = in_fresh_python(
        "import runpy, sys; sys.argv = ['pio', '--version']; runpy.run_module('inference_pio', run_name='__main__')"
    )
    assert told.startswith("inference-pio ")
