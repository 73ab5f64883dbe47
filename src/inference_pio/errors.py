"""Every error a user can meet, in one tree.

InferencePioError
├── UnknownName              a word that is not known; answers with the nearest known ones
├── InvalidSetting           a value of the wrong type, out of bounds, or contradicting another
├── InvalidModel             not a model, or one of a kind that is refused whole
├── PlanError                refused before anything is touched
│   ├── ConflictError        two optimizations claim the same thing at the same place
│   ├── DependencyCycle      optimizations that need each other in a circle
│   ├── NoEffect             an order that applies nowhere on this model
│   ├── NothingApplied       a profile none of whose members applies
│   └── RequiredByOthers     removing what others still need
├── UndoError
│   ├── ModelDrift           the model was changed by someone else under an optimization
│   └── VaultError           parked originals are damaged or gone
├── ModelBusy                an edit while the model computes
├── RefusedOnOptimized       an ordinary call that an optimized model cannot honour
├── StreamError              weights that lie on disk cannot be read
├── SourceError              a model cannot be found, fetched or read
│   ├── DownloadFailed
│   ├── ChecksumMismatch
│   └── CorruptFile
├── StorageError             a place cannot be written
│   └── DiskFull
├── ArtifactError            a saved optimized model cannot be saved or loaded
├── MeasureError             a measurement cannot be made
├── QualityBroken            answers move farther than a quality guard allows, and only orders could be taken back
└── MissingExtra             an optional package is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InferencePioError(Exception):
    """The root of every error this package raises on purpose."""


class UnknownName(InferencePioError, LookupError):
    """A word that is not known, with the nearest known ones.

    >>> str(UnknownName("optimization", "flash_atention", ["flash_attention", "tensor_compression"]))
    "unknown optimization 'flash_atention'. Did you mean 'flash_attention'? Known: flash_attention, tensor_compression."
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(map(str, known))
        near = difflib.get_close_matches(str(name), self.known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        listed = f" Known: {', '.join(self.known)}." if self.known else " None is known."
        super().__init__(f"unknown {kind} {name!r}{f' {where}' if where else ''}.{hint}{listed}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.kind, self.name, self.known)


class InvalidSetting(InferencePioError, ValueError):
    """A value of the wrong type, out of bounds, or contradicting another."""


class InvalidModel(InferencePioError, TypeError):
    """Not an `nn.Module`, or one of a kind that is refused whole."""


class PlanError(InferencePioError):
    """Refused in the plan, before anything is touched."""


class ConflictError(PlanError):
    """Two optimizations claim the same thing at the same place."""


class DependencyCycle(PlanError):
    """Optimizations that need each other in a circle."""


class NoEffect(PlanError):
    """An order that applies nowhere on this model."""


class NothingApplied(PlanError):
    """A profile none of whose members applies on this model."""


class RequiredByOthers(PlanError):
    """Removing what other applied optimizations need."""


class UndoError(InferencePioError):
    """Something stands in the way of an exact undo; the model is as before the call."""


class ModelDrift(UndoError):
    """The model was changed by someone else under an optimization."""


class VaultError(UndoError):
    """Parked originals are damaged or gone."""


class ModelBusy(InferencePioError):
    """An edit while the model computes."""


class RefusedOnOptimized(InferencePioError):
    """An ordinary call that an optimized model cannot honour."""


class StreamError(InferencePioError):
    """Weights that lie on disk cannot be read."""


class SourceError(InferencePioError):
    """A model cannot be found, fetched or read."""


class DownloadFailed(SourceError):
    """A download did not end, or ended short."""


class ChecksumMismatch(SourceError):
    """A file is not the one that was expected."""


class CorruptFile(SourceError):
    """A model file cannot be read."""


class StorageError(InferencePioError, OSError):
    """A place cannot be written."""


class DiskFull(StorageError):
    """Not enough room for what is to be written."""


class ArtifactError(InferencePioError):
    """A saved optimized model cannot be saved or loaded."""


class MeasureError(InferencePioError):
    """A measurement cannot be made."""


class QualityBroken(InferencePioError):
    """Answers move farther than a quality guard allows, and only orders could be taken back; `steps` are these."""

    def __init__(self, told: str, steps: Iterable[str] = ()) -> None:
        self.steps = tuple(steps)
        super().__init__(told)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.steps)


class MissingExtra(InferencePioError, ImportError):
    """An optional package is not installed.

    >>> str(MissingExtra("gguf", "gguf", "reading a .gguf file"))
    "reading a .gguf file needs the package 'gguf': pip install 'inference-pio[gguf]'"
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'inference-pio[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.package, self.extra, self.purpose)
