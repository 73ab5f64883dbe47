from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.cli.opening import apply_shown, open_shown, plan_shown
from inference_pio.integration.asked import Asked
from inference_pio.manager import get_optimization_manager


def test_a_folder_is_opened_planned_and_optimized(llama_folder: Path) -> None:
    asked = Asked(str(llama_folder), "lossless")
    opened = open_shown(asked, quiet=True)
    assert [step.name for step in plan_shown(asked, opened, quiet=True).steps] == ["flash_attention", "kernel_fusion"]
    apply_shown(asked, opened, quiet=True)
    assert get_optimization_manager().get_model_optimizations(opened.model) == ["flash_attention", "kernel_fusion"]


@pytest.mark.parametrize("quiet", [True, False])
def test_what_is_fetched_shows_bars_of_its_own_unless_all_is_quiet(
    quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    monkeypatch.setattr(Asked, "open", lambda self, dtype=None, *, progress=True: heard.append(progress))
    open_shown(Asked("some/model"), quiet)
    assert heard == [not quiet]
