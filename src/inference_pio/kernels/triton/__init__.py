"""Kernels of our own in Triton: what one needs is told by `support`; importing this package loads nothing."""
