"""What kind of model a model says it is."""

from __future__ import annotations

from torch import nn


def model_type_of(model: nn.Module) -> str | None:
    """The `model_type` of a Hugging Face model's configuration ("qwen3_moe", say); None for other models.

    >>> print(model_type_of(nn.Linear(2, 2)))
    None
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind if isinstance(kind, str) and kind else None
