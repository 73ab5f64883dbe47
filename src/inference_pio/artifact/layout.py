"""The compressed-tensors layout: how codes, steps and zeros of a weight are named, packed and told of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from inference_pio.errors import ArtifactError
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.kernels.fp8 import FP8
from inference_pio.kernels.int32_words import pack_words
from inference_pio.kernels.whole_grid import MadeOver, WholeGrid, fit_whole_grid

Int4As = Literal["wide", "symmetric", "asymmetric"]
"""What int4 becomes: 8 bits (the weights stay, to a 400th), or 4 bits without or with zeros (they are rounded anew)."""
GRIDS: Mapping[str, WholeGrid] = {
    "wide": WholeGrid(8), "symmetric": WholeGrid(4), "asymmetric": WholeGrid(4, zeros=True),
}  # fmt: skip
PACKED, FLOAT, MIXED = "pack-quantized", "float-quantized", "mixed-precision"


@dataclass(frozen=True)
class Scheme:
    """How a kind of layers is stored; `group` is how many inputs share a step, None for whole rows."""

    bits: int
    type: Literal["int", "float"] = "int"
    group: int | None = None
    symmetric: bool = True

    def __str__(self) -> str:
        held = f"in groups of {self.group}" if self.group else "by rows"
        name = f"int{self.bits}" if self.type == "int" else f"fp{self.bits}"
        return f"{name} {held}{'' if self.symmetric else ', with zeros'}"

    @property
    def format(self) -> str:
        return FLOAT if self.type == "float" else PACKED

    def to_config(self, targets: Sequence[str]) -> dict[str, Any]:
        """A config group; activations stay as they are."""
        weights = {
            "num_bits": self.bits, "type": self.type, "symmetric": self.symmetric, "dynamic": False,
            "strategy": "group" if self.group else "channel", "group_size": self.group,
        }  # fmt: skip
        return {
            "targets": list(targets), "weights": weights, "input_activations": None, "output_activations": None,
            "format": self.format,
        }  # fmt: skip

    def packed(self, name: str, codes: Tensor, step: Tensor, zero: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one matrix [N, K] whose weight is called `name`, with steps and zeros [N, groups]."""
        if self.type == "float":
            yield name, codes.view(FP8)
        else:
            yield f"{name}_packed", pack_words(codes, self.bits)
            yield f"{name}_shape", torch.tensor(codes.shape)
        yield f"{name}_scale", step
        if not self.symmetric:
            yield f"{name}_zero_point", pack_words(zero.t().contiguous(), self.bits).t()


def whole_codes(module: CompressedModule, name: str, int4: Int4As) -> tuple[Scheme, MadeOver]:
    """One weight ("weight", "gate_up", "down") of a compressed module, as the layout knows it.

    Raises ArtifactError for formats that it has no form for.
    """
    codes, scale = module.held(name)
    codes = module.portable(codes)
    if module.format == "int4":
        grid = GRIDS[int4]
        made = fit_whole_grid(codes, scale, grid)
        return Scheme(grid.bits, "int", made.codes.shape[-1] // made.step.shape[-1], not grid.zeros), made
    if module.format not in ("int8", "fp8"):
        raise ArtifactError(
            f"the compressed-tensors layout has no form for {module.format}: compress the model to int8, fp8 or int4."
        )
    step = scale[..., None]
    kind: Literal["int", "float"] = "int" if module.format == "int8" else "float"
    return Scheme(8, kind), MadeOver(codes, step, torch.zeros_like(step), 0.0, 0.0)


def quantization_config(schemes: Mapping[Scheme, Sequence[str]], kept: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint: `schemes` with the modules each stores, and those that are `kept`.

    The scheme of most modules is that of every Linear; the others name theirs by patterns, which stand in front of it.
    """
    *others, main = sorted(schemes, key=lambda scheme: len(schemes[scheme]))
    groups = [*(scheme.to_config(schemes[scheme]) for scheme in others), main.to_config(["Linear"])]
    formats = {scheme.format for scheme in schemes}
    return {
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "config_groups": {f"group_{place}": group for place, group in enumerate(groups)},
        "ignore": list(kept), "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip
