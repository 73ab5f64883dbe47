"""Launches that were found fastest on a machine, kept in a file between runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from inference_pio.files import write_atomically
from inference_pio.kernels.triton.gemv_candidates import GemvProblem
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.gemv_tuning import Tuning

FORMAT = 1
SOURCES = (
    "exponent12.py", "exponent12_gemv.py", "exponent12_sums.py", "gemv.py", "gemv_candidates.py", "gemv_choice.py",
    "gemv_ends.py", "gemv_launch.py", "gemv_sums.py", "group_codes.py", "group_units.py", "held_tiles.py",
    "held_units.py", "ordered_sums.py", "overlap.py", "row_codes.py",
)  # fmt: skip
"""What the kernel is made of, and what is tried first: times of another kernel tell nothing of this one, and two
seconds of other launches may not have reached its best."""


def machine_of(device: torch.device) -> dict[str, str]:
    """What times depend on beside the problem: the GPU, the versions that compile for it, the kernel's source."""
    import triton

    found = torch.cuda.get_device_properties(device)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "torch": str(torch.__version__),
        "triton": str(triton.__version__),
        "source": kernel_digest(),
    }


def kernel_digest() -> str:
    """The SHA-256 of the kernel's source."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


@dataclass
class TunedLaunches:
    """What a file in `folder` holds of a machine. `ignored` says why it was not used, where one was there and was not.

    Machines that share a folder have a file each.
    """

    folder: Path
    machine: dict[str, str]
    found: dict[str, Tuning] = field(default_factory=dict, init=False)
    ignored: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.found, self.ignored = self._read()

    @property
    def file(self) -> Path:
        named = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()
        return self.folder / f"gemv-{named[:24]}.json"

    def launch_for(self, problem: GemvProblem) -> GemvLaunch | None:
        """The launch that was found for a problem, or None where it was not tuned for on this machine."""
        tuning = self.found.get(problem.key())
        return None if tuning is None else tuning.launch

    def keep(self, problem: GemvProblem, tuning: Tuning) -> None:
        """Add a problem's launch to the file, whatever it holds by now; a damaged one is written anew.

        Raises StorageError where the folder cannot be written; the launch is known to this object all the same.
        """
        self.found[problem.key()] = tuning
        others, _ = self._read()
        self.found = others | self.found
        problems = {key: _as_data(self.found[key]) for key in sorted(self.found)}
        document = {"format": FORMAT, "machine": self.machine, "problems": problems}
        write_atomically(self.file, json.dumps(document, indent=1) + "\n")

    def _read(self) -> tuple[dict[str, Tuning], str | None]:
        try:
            document = json.loads(self.file.read_bytes())
            if document["format"] != FORMAT or document["machine"] != self.machine:
                return {}, f"{self.file} was made for another machine or by another version, and is written anew"
            return {key: _from_data(data) for key, data in document["problems"].items()}, None
        except FileNotFoundError:
            return {}, None
        except OSError as error:
            return {}, f"{self.file} cannot be read ({error.strerror})"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return {}, f"{self.file} is damaged ({type(error).__name__}: {error}), and is written anew"


def _as_data(tuning: Tuning) -> dict[str, Any]:
    timings = [{"launch": asdict(launch), "microseconds": taken} for launch, taken in tuning.microseconds.items()]
    return {"launch": asdict(tuning.launch), "timings": timings, "notes": list(tuning.notes)}


def _from_data(data: dict[str, Any]) -> Tuning:
    timings = {_launch(one["launch"]): float(one["microseconds"]) for one in data["timings"]}
    return Tuning(_launch(data["launch"]), timings, tuple(map(str, data["notes"])))


def _launch(data: dict[str, Any]) -> GemvLaunch:
    launch = GemvLaunch(**data)
    numbers = (launch.rows, launch.columns, launch.warps, launch.stages, launch.parts)
    if any(type(number) is not int for number in numbers) or type(launch.dependent) is not bool:
        raise ValueError(f"{launch} is no launch")
    launch.check()
    return launch
