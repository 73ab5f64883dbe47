"""The interpreter of kernels, for what chooses them here."""

from tests.kernels.triton.conftest import interpreted

__all__ = ["interpreted"]
