"""Optimizations of what is computed."""
