"""Optimizations of what memory holds."""
