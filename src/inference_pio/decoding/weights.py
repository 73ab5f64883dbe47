"""The tensors that a layer multiplies with, where they can be read from beside it: plain, packed, codes with scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference_pio.formats.compressed_experts import CompressedExperts, experts_layout
from inference_pio.formats.exponent12 import Exponent12Linear
from inference_pio.formats.factored_linear import FactoredLinear
from inference_pio.formats.fp8 import Fp8Experts, Fp8Linear
from inference_pio.formats.int4 import Int4Experts, Int4Linear
from inference_pio.formats.int8 import Int8Experts, Int8Linear
from inference_pio.kernels.exponent12 import Packed
from inference_pio.kernels.row_codes import group_of


@dataclass(frozen=True)
class LinearWeights:
    """`weight` [out, in], or codes with `scale`: one number a row (int8, or fp8 in uint8), or grids [groups, out, 2]
    (int4, in the words of a GPU); and a `bias` [out]."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    @property
    def kind(self) -> tuple[torch.dtype, int]:
        """What weights of one product have in common."""
        return self.weight.dtype, group_of(self.weight, self.scale)


@dataclass(frozen=True)
class PackedWeights:
    """Layers of one input in exponent12, and a bias or none of each."""

    packed: tuple[Packed, ...]
    biases: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class FactoredWeights:
    """Layers of one input in two factors: `into` a few numbers (with an `order`, of the inputs behind the first `rank`,
    which are added as they are), and each layer's `out_of` them."""

    into: LinearWeights
    out_of: tuple[LinearWeights, ...]
    order: Tensor | None
    rank: int


@dataclass(frozen=True)
class ExpertWeights:
    """`gate_up` [E, 2I, H] and `down` [E, H, I], or codes of them, each with scales a row or with grids."""

    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None


def linear_weights(layer: nn.Module) -> LinearWeights | None:
    """What a linear layer holds; None for one that computes in a way of its own.

    >>> found = linear_weights(nn.Linear(3, 2))
    >>> tuple(found.weight.shape), found.scale
    ((2, 3), None)
    """
    if isinstance(layer, Int8Linear | Fp8Linear):
        codes, scale = layer.held("weight")
        return LinearWeights(codes, scale, layer._parameters["bias"])
    if isinstance(layer, Int4Linear) and layer.weight_int4.dtype is torch.int32:
        return LinearWeights(layer.weight_int4, layer.weight_scale, layer._parameters["bias"])
    plain = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    if not plain or hasattr(layer, "parametrizations"):
        return None
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return LinearWeights(weight, None, layer._parameters["bias"])


def packed_weights(layers: Sequence[nn.Module]) -> PackedWeights | None:
    """What layers of one input hold that are all in exponent12; None where they are not."""
    if not all(isinstance(layer, Exponent12Linear) for layer in layers):
        return None
    packed = tuple(Packed(*layer.held("weight")) for layer in layers)  # type: ignore[operator]
    return PackedWeights(packed, tuple(layer._parameters["bias"] for layer in layers))


def unpacked_beside_plain(layers: Sequence[nn.Module]) -> list[LinearWeights] | None:
    """What layers of one input hold of which some are in exponent12, whose weights are made anew, and the others were
    kept in bfloat16: one product as of plain layers. None for all others."""
    packed = [isinstance(layer, Exponent12Linear) for layer in layers]
    kept = [linear_weights(layer) for layer, is_packed in zip(layers, packed, strict=True) if not is_packed]
    if not any(packed) or any(one is None or one.weight.dtype is not torch.bfloat16 for one in kept):
        return None
    plain = iter(kept)
    return [
        LinearWeights(layer.dequantize(torch.bfloat16), None, layer._parameters["bias"]) if is_packed else next(plain)  # type: ignore[operator, misc]
        for layer, is_packed in zip(layers, packed, strict=True)
    ]


def factored_weights(layers: Sequence[nn.Module]) -> FactoredWeights | None:
    """What layers of one input hold that share the factor which reads it; None where they do not."""
    if not all(isinstance(layer, FactoredLinear) for layer in layers):
        return None
    first = layers[0].into
    if any(layer.into is not first for layer in layers):
        return None
    into, *out_of = (linear_weights(factor) for factor in (first.rest, *(layer.out_of for layer in layers)))  # type: ignore[arg-type, union-attr]
    if into is None or any(one is None or one.kind != out_of[0].kind for one in out_of):  # type: ignore[union-attr]
        return None
    return FactoredWeights(into, tuple(out_of), first._buffers["order"], first.rank)  # type: ignore[arg-type, union-attr]


def expert_weights(experts: nn.Module) -> ExpertWeights | None:
    """What fused experts hold; None for a layout that is not known."""
    if isinstance(experts, Int8Experts):
        return ExpertWeights(experts.gate_up_int8, experts.down_int8, experts.gate_up_scale, experts.down_scale)
    if isinstance(experts, Fp8Experts):
        return ExpertWeights(experts.gate_up_fp8, experts.down_fp8, experts.gate_up_scale, experts.down_scale)
    if isinstance(experts, Int4Experts) and experts.down_int4.dtype is torch.int32:
        return ExpertWeights(experts.gate_up_int4, experts.down_int4, experts.gate_up_scale, experts.down_scale)
    if isinstance(experts, CompressedExperts) or experts_layout(experts) is not None:
        return None
    held = [experts._parameters[name] for name in ("gate_up_proj", "down_proj")]
    gate_up, down = held
    assert isinstance(gate_up, torch.Tensor)
    assert isinstance(down, torch.Tensor)
    return ExpertWeights(gate_up, down)
