"""The code on the cache's page runs as it stands, in document order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.cache.walks import prompt

PAGE = Path(__file__).parents[2] / "docs" / "cache.md"


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_the_snippets_run_unchanged_in_document_order(name: str) -> None:
    known: dict[str, Any] = {"model": tiny.build(name), "inputs": prompt(2, 70, (3, 0)), "longer": prompt(2, 300)}
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 4
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), known)
