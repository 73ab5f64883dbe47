"""Tests of the engine behind `generate`."""
