"""Where models come from: a Hugging Face id, a local folder, a `.gguf` file, or `demo`. Every one ends as a folder."""

from inference_pio.sources.open import open_model
from inference_pio.sources.opened import OpenedModel

__all__ = ["OpenedModel", "open_model"]
