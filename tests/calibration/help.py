from __future__ import annotations

import torch

from tests import tiny


def inputs_for(name: str) -> dict[str, torch.Tensor]:
    """Keyword arguments for one forward of a tiny model."""
    return tiny.inputs(name, tiny.build(name))
