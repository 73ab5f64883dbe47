"""Weights that lie on disk and come when they are needed: a store, a reader, a planner, and the stream between them."""
