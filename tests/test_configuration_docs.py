"""The snippets of the pages on configuration and migration run as they stand, in document order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference_pio.configuration import (
    GlobalOptimizationProfile,
    ModelFamily,
    ModelOptimizationConfig,
    PerformanceTargets,
    ResourceConstraints,
    config_manager,
    families,
)
from inference_pio.configuration.legacy.words import DOCUMENT_KEYS, FLAGS, MEMBER_KEYS, PARAMETERS
from inference_pio.manager import get_optimization_manager
from tests import tiny

DOCS = Path(__file__).parents[1] / "docs"
BOTH = ["tensor_compression", "flash_attention"]


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def _forgotten_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers is gone after it."""
    monkeypatch.setattr(ModelFamily, "_known", dict(ModelFamily._known))
    monkeypatch.setattr(ModelFamily, "GPT", None, raising=False)
    config_manager._shared.cache_clear()
    yield
    config_manager._shared.cache_clear()
    families._families_by_type.cache_clear()


def run(page: str, **given: Any) -> dict[str, Any]:
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), given)
    return given


@pytest.mark.usefixtures("_forgotten_again")
def test_a_family_is_added_as_the_page_says(tmp_path: Path) -> None:
    model = tiny.build("gpt2")
    known = run("configuration.md", folder=tmp_path, model=model)
    assert known["model"] is model
    status = get_optimization_manager().get_optimization_status(model)
    assert status["model_family"] == "gpt"
    assert status["applied"] == BOTH


@pytest.mark.usefixtures("_forgotten_again")
def test_the_page_on_migrating_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.build("qwen3")
    run("migrating.md", folder=tmp_path, model=model)
    assert "family: qwen" in capsys.readouterr().out
    assert (tmp_path / "new.yaml").read_text().startswith("family: glm\n")
    assert get_optimization_manager().get_model_optimizations(model) == BOTH


def test_the_files_that_the_page_shows_are_right_and_show_every_key() -> None:
    profile, family = (yaml.safe_load(block) for block in blocks("configuration.md", "yaml"))
    assert set(profile) == set(GlobalOptimizationProfile.model_fields)
    assert set(profile["performance_targets"]) == set(PerformanceTargets.model_fields)
    assert set(profile["resource_constraints"]) == set(ResourceConstraints.model_fields)
    assert set(family) == set(ModelOptimizationConfig.model_fields)
    assert GlobalOptimizationProfile(**profile).members == ("flash_attention", "tensor_compression")
    assert ModelOptimizationConfig(**family).for_model_type("qwen3_moe").enabled


def test_every_legacy_word_is_on_the_page() -> None:
    page = (DOCS / "migrating.md").read_text(encoding="utf-8")
    assert [word for word in (*FLAGS, *DOCUMENT_KEYS, *MEMBER_KEYS, *PARAMETERS) if word not in page] == []
