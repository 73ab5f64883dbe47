"""Says which build of torch pip is about to install, and how much there is to download.

    python tools/torch_build.py [INDEX_URL]

pip itself is asked (a dry run), since its configuration may name other places than the registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from importlib.metadata import version
from pathlib import Path

FIRST_LIGHT_DRY_RUN = (23, 3)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ROUGHLY = "about 190 MB for a CPU build, several GB for one with CUDA"


def main(index_url: str = "") -> None:
    try:
        packages = planned(index_url)
        size = f"{sum(map(size_bytes, packages)) / 1e6:,.0f} MB"
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        packages, size = [], ROUGHLY
    torch = next((package for package in packages if package["metadata"]["name"] == "torch"), None)
    if torch is None and packages:
        return  # it is here already
    build = f"torch {torch['metadata']['version']}" if torch else "torch"
    is_cuda = any(package["metadata"]["name"].startswith("nvidia") for package in packages)
    place = urllib.parse.urlsplit(torch["download_info"]["url"]) if torch else None
    source = (place.hostname or place.path) if place else index_url or "the package registry"
    print(f"Installing {build}{' with CUDA' if is_cuda else ''} from {source}: {size} to download.", flush=True)
    if is_cuda and not has_nvidia_gpu():
        print(f"No NVIDIA GPU was found here: TORCH_INDEX={CPU_INDEX} make ... takes the small CPU build.", flush=True)


def planned(index_url: str) -> list[dict]:
    """What pip would install for torch: its report, a list of packages."""
    if tuple(map(int, version("pip").split(".")[:2])) < FIRST_LIGHT_DRY_RUN:
        raise ValueError("this pip would download everything only to say what it is")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report=-", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--constraint=constraints.txt"]
    command += ["--no-deps", f"--index-url={index_url}"] if index_url else []
    done = subprocess.run([*command, "torch"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)["install"]


def size_bytes(package: dict) -> int:
    url = package["download_info"]["url"]
    place = urllib.parse.urlsplit(url)
    if place.scheme == "file":
        return Path(urllib.request.url2pathname(place.path)).stat().st_size
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
        return int(answer.headers["Content-Length"])


def has_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or os.path.lexists("/dev/nvidia0")


if __name__ == "__main__":
    main(*sys.argv[1:2])
