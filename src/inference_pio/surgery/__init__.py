"""Small edits of a model's structure, one a file; each says how exact it is, where it applies and what it does."""
