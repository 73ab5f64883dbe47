"""Save an optimized model at its optimized size, load it again by its recorded decisions, export it for others."""

from inference_pio.artifact.check_export import check_export
from inference_pio.artifact.export import Export, export
from inference_pio.artifact.load import load
from inference_pio.artifact.save import save

__all__ = ["Export", "check_export", "export", "load", "save"]
