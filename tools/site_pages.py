"""Pages of the site that lie elsewhere in the repository, and links between all of them: a hook of mkdocs.

A page is written once. README, what was measured, and how to take part are shown on the site as they stand, with
links that lead to the site's pages; what the site does not have is named, not linked.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "index.md": "README.md",
    "measured.md": "benchmarks/results/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "benchmarks-log.md": "benchmarks/LOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "plugin.md": "examples/plugin/README.md",
}
DRAWINGS = "benchmarks/results"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere, and the drawings of what was measured."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for drawing in sorted((ROOT / DRAWINGS).glob("*.svg")):
        files.append(File.generated(config, f"{DRAWINGS}/{drawing.name}", abs_src_path=str(drawing)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links to where the site has their targets."""
    source = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda link: _led(link, source, files), markdown)


def _led(link: re.Match[str], source: str, files: Any) -> str:
    mark, text, target, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
    if "://" in target or target.startswith("mailto:"):
        return link.group(0)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    place = next((page for page, other in ELSEWHERE.items() if other == path), path.removeprefix("docs/"))
    if files.get_file_from_path(place) is not None:
        return f"{mark}[{text}]({place}{anchor})"
    if not (ROOT / path).exists():
        return link.group(0)  # mkdocs says that it is broken
    return f"{text} (`{path}`)"
