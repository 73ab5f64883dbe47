"""Optimizations of how attention is computed."""
