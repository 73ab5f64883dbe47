"""The documented import paths of the optimization system."""
