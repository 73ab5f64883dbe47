"""The rooms and the stairs between them: imports run down, never up, never sideways between rooms of one floor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "inference_pio"

FLOORS = [  # from top to bottom; rooms of one floor do not import one another
    {"__main__"},
    {"cli"},
    {"common", "__init__"},
    {"integration"},
    {"artifact"},
    {"manager"},
    {"plan"},
    {"optimizations"},
    {"surgery"},
    {"measure", "streaming", "decoding", "spiking", "calibration", "sparsity"},
    {"cache", "formats", "anatomy", "sources"},
    {"contract", "configuration"},
    {"undo"},
    {"kernels"},
    {"files", "partials"},
    {"compat", "errors"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
ALLOWED = {
    ("configuration", "contract"): "a family's defaults are made of OptimizationConfigs",
    ("compat", "errors"): "what a version lacks is told with a typed error",
    ("files", "partials"): "one noun a file, one job",
    ("calibration", "measure"): "the text that may be learned from is the part that is never evaluated on",
}


def room_of(module: str) -> str:
    return Path(module).parts[0].removesuffix(".py")


def imports_of(module: str) -> set[str]:
    """The rooms that a module imports, wherever in the file the import stands (type checking aside)."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / module).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [node.module or ""]
            if node.module == "inference_pio":
                names = [f"inference_pio.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("inference_pio.")}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module: str) -> None:
    room = room_of(module)
    assert room in LEVEL, f"{room} has no floor: give it one in FLOORS"
    for other in imports_of(module) - {room, "__version__"}:
        if (room, other) not in ALLOWED:
            assert LEVEL[other] > LEVEL[room], f"{module} ({room}) imports {other}, which is not below it"


def test_no_optimization_names_another() -> None:
    names = {path.stem: path for path in SOURCE.joinpath("optimizations").rglob("*.py") if path.stem != "__init__"}
    for name, path in names.items():
        text = path.read_text()
        assert not [other for other in names if other != name and f'"{other}"' in text], name


def test_only_compat_knows_library_versions() -> None:
    for module in MODULES:
        if room_of(module) != "compat":
            text = (SOURCE / module).read_text()
            assert "is_torch_greater" not in text, module
            assert "version.parse" not in text, module
            assert "packaging" not in text, module


FORBIDDEN_CALLS = {"eval", "exec", "compile", "torch.load", "torch.save", "yaml.load", "os.system"}


def test_nothing_is_loaded_with_pickle_and_no_text_becomes_code() -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse((SOURCE / module).read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"{module} calls {ast.unparse(node.func)}"
            if isinstance(node, ast.Import):
                assert "pickle" not in [alias.name for alias in node.names], module


def test_every_module_opens_with_what_it_is_for() -> None:
    missing = [module for module in MODULES if not ast.get_docstring(ast.parse((SOURCE / module).read_text()))]
    assert missing == []


def test_every_module_has_a_test_that_mirrors_it() -> None:
    tests = Path(__file__).parent
    missing = []
    for module in MODULES:
        path = Path(module)
        if path.stem.startswith("__") or path.parts[0] == "common":
            continue
        if not (tests / path.parent / f"test_{path.name}").is_file():
            missing.append(module)
    assert missing == []


def test_importing_loads_no_torch() -> None:
    code = "import sys, inference_pio; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
