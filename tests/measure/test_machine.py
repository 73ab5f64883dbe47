from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from inference_pio.measure import machine
from inference_pio.measure.machine import describe_machine


def test_it_names_the_device_the_threads_and_the_versions():
    found = describe_machine()
    assert found.device == "cpu"
    assert found.cpu
    assert found.threads == torch.get_num_threads()
    assert found.cores >= 1
    assert found.versions["torch"] == torch.__version__
    assert set(found.versions) == {"python", "inference-pio", "torch", "transformers", "triton"}
    assert found.cpu in str(found)


def test_a_package_that_is_not_there_is_null(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("no-such-package-here",))
    assert describe_machine().versions["no-such-package-here"] is None


def test_it_names_no_place_on_the_machine():
    told = json.dumps(describe_machine().to_json())
    for place in (str(Path.home()), str(Path(__file__).parents[2]), str(Path(machine.__file__).parent)):
        assert place not in told


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed here")
    for name in ("NAME", "EMAIL"):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", "test")
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", "test")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    (tmp_path / "machine.py").write_text("one\n")
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_its_checkout_is_told_and_whether_it_was_changed(checkout):
    git(checkout, "add", "machine.py")
    git(checkout, "commit", "--quiet", "-m", "one")
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert describe_machine().commit == commit
    (checkout / "machine.py").write_text("two\n")
    assert describe_machine().commit == f"{commit}-dirty"


def test_someone_elses_checkout_around_it_is_not_its_commit(checkout):
    (checkout / "other.py").write_text("theirs\n")
    git(checkout, "add", "other.py")
    git(checkout, "commit", "--quiet", "-m", "theirs")
    assert describe_machine().commit is None


def test_no_checkout_and_no_git_are_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert describe_machine().commit is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_machine().commit is None
