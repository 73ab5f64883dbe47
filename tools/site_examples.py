"""Examples in docstrings as code on the site: an extension of griffe, which reads the sources for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

EXAMPLE = re.compile(r"(^>>> .*(?:\n(?!\n).+)*)", re.M)


class FencedExamples(Extension):
    """Puts a fence around each run of lines that begins with a prompt."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\1\n```", obj.docstring.value)
