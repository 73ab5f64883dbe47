"""Optimizations of what a model is made of."""
