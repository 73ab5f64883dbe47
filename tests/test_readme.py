"""The README's code runs, its table is the registry's, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.manager import ModularOptimizationManager, get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.model_folder import write_model_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_the_code_runs_and_leaves_the_model_as_it_was(block: str, tmp_path: Path) -> None:
    model = tiny.build("qwen3")
    before, answers = fingerprint(model), tiny.logits(model, "qwen3")
    checkpoint = write_model_folder(tmp_path / "checkpoint", "qwen3", tokenizer=False)
    names: dict[str, Any] = {"model": model, "folder": tmp_path / "saved", "checkpoint": checkpoint}
    try:
        exec(compile(block, "README.md", "exec"), names)
    finally:
        if "doubled" in get_optimization_manager().registry:
            get_optimization_manager().registry.unregister("doubled")
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, "qwen3"), answers)


def test_the_table_is_what_the_registry_holds() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| ([^|]+) \| ([^|]+) \|$", README, flags=re.MULTILINE)
    assert rows == [
        (cls.name, cls.optimization_type.value, cls.stage.name.lower(), cls.exactness, cls.summary)
        for cls in ModularOptimizationManager().registry
    ]


def test_links_lead_to_files_of_the_repository() -> None:
    for page in [ROOT / "README.md", *ROOT.joinpath("docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
