"""The systems that are compared: one small file for each kind, and `table.py`, which knows them all by name."""
