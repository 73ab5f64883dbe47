"""The documented import paths; everything lives elsewhere and is re-exported here."""
