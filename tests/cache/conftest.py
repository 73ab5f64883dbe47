"""The cache's kernels are interpreted as those of `tests/kernels/triton` are."""

from tests.kernels.triton.conftest import interpreted

__all__ = ["interpreted"]
