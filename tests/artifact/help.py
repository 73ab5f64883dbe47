"""A reader of exported checkpoints that goes by the layout's definition, number by number, and knows no library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.compressed_module import CompressedModule


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """Signed codes of int32 words [N, words]."""
    places = torch.arange(columns)
    raised = words.long()[:, places * bits // 32] >> places * bits % 32 & (1 << bits) - 1
    return raised - (1 << bits - 1)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its plain name, in float32 where it was compressed."""
    found = load_file(folder / "model.safetensors")
    for name in [name for name in found if name.endswith(".weight_scale")]:
        stem, scale = name.removesuffix("_scale"), found.pop(name).float()
        if f"{stem}_packed" not in found:
            found[stem] = found[stem].float() * scale
            continue
        packed, shape = found.pop(f"{stem}_packed"), found.pop(f"{stem}_shape").tolist()
        bits = 32 * packed.shape[1] // shape[1]
        codes = unpacked(packed, bits, shape[1]).float().unflatten(1, (scale.shape[1], -1))
        if f"{stem}_zero_point" in found:
            codes -= unpacked(found.pop(f"{stem}_zero_point").t(), bits, shape[0]).t()[..., None]
        found[stem] = (codes * scale[..., None]).flatten(1)
    return found


def plain_twin(model: nn.Module, twin: Any) -> Any:
    """`twin`, the model as it was, with the weights that the compressed modules of `model` stand for."""
    for path, module in model.named_modules():
        if isinstance(module, CompressedModule):
            made = module.dequantize()  # type: ignore[operator]
            into = twin.get_submodule(path)
            names = ["weight"] if isinstance(module, CompressedLinear) else ["gate_up_proj", "down_proj"]
            for name, weight in zip(names, [made] if len(names) == 1 else made, strict=True):
                getattr(into, name).data = weight
    return twin
