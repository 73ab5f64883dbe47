"""Modules that hold weights in a format of their own and compute with them."""
