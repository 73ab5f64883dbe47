"""Sparse attention that is checked while it runs: what is kept is held against what the queries really look at."""
