"""Save an optimized model at its optimized size, and load it again by its recorded decisions."""

from inference_pio.artifact.load import load
from inference_pio.artifact.save import save

__all__ = ["load", "save"]
