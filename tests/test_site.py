"""The site is built from what the repository holds, without a broken link; each optimization has a page there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference_pio.manager import ModularOptimizationManager

ROOT = Path(__file__).parents[1]


def build(root: Path, into: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(into)]
    silent = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=silent, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_it_has_every_page_and_what_was_measured(site: Path) -> None:
    for page in ("index.html", "measured/index.html", "plugin/index.html", "reference/index.html"):
        assert (site / page).is_file(), page
    assert "ModularOptimizationManager" in (site / "reference" / "index.html").read_text()
    drawing = re.search(r'src="([^"]+\.svg)"', (site / "measured" / "index.html").read_text())
    assert drawing is not None
    assert (site / "measured" / drawing[1]).resolve().is_file()


@pytest.mark.parametrize("name", ModularOptimizationManager().get_available_optimizations())
def test_each_optimization_has_a_page(name: str) -> None:
    named = re.compile(rf"^#+ .*{name}", re.M)
    told = [page.name for page in (ROOT / "docs").glob("*.md") if named.search(page.read_text())]
    assert told, f"no page under docs/ has a heading that names {name}"


@pytest.mark.slow
def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    for part in ("docs", "benchmarks/results", "tools", "examples"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for part in (
        "README.md",
        "benchmarks/README.md",
        "benchmarks/LOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "mkdocs.yml",
    ):
        shutil.copyfile(ROOT / part, tmp_path / part)
    (tmp_path / "src").symlink_to(ROOT / "src")
    page = tmp_path / "docs" / "usage.md"
    page.write_text(page.read_text() + "\n[nowhere](no-such-page.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "no-such-page.md" in done.stderr
