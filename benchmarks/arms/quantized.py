"""torchao's weight-only formats under the fastest step that torch gives them: a CUDA graph over inductor.

The head stays as it is: torchao would silently untie it from the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.arms.decoder import Decoder
from benchmarks.arms.graph import GraphDecoder
from benchmarks.arms.room import Room


def torchao(form: str, *, tuned: bool = False) -> Callable[[nn.Module, Room], Decoder]:
    """`tuned` lets torchao change inductor's process-wide settings, as its default does; that takes minutes."""

    def make(model: nn.Module, room: Room) -> Decoder:
        from torchao.quantization import quantize_

        acting = [name for name, module in model.named_modules() if _meant(module, name)]
        quantize_(model, _config(form, tuned), filter_fn=_meant)
        room.notes.append(f"{len(acting)} Linear layers; experts, which are no Linear layers, and the head are left")
        decoder = GraphDecoder(model, room.tokens, room.compiling({"fullgraph": True}))
        decoder.capture(room.prompt)
        return decoder

    return make


def _meant(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and "lm_head" not in name and "visual" not in name


def _config(form: str, tuned: bool) -> Any:
    from torchao import quantization

    if form == "int8":
        return quantization.Int8WeightOnlyConfig(set_inductor_config=tuned)
    if form == "fp8":
        return quantization.Float8WeightOnlyConfig(set_inductor_config=tuned)
    # the default packing needs a further package; this one needs torch alone
    return quantization.Int4WeightOnlyConfig(
        group_size=128, int4_packing_format="tile_packed_to_4d", set_inductor_config=tuned
    )
