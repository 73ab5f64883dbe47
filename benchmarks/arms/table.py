"""All systems by name: what a user would call them, how exact they claim to be, what they need, how they are made."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from benchmarks.arms import factored, narrow, offload, ours, quantized
from benchmarks.arms.decoder import Decoder, GenerateDecoder
from benchmarks.arms.graph import GraphDecoder
from benchmarks.arms.room import Room

FULL = {"fullgraph": True}
TUNED = {"fullgraph": True, "options": {"coordinate_descent_tuning": True}}
Make = Callable[[nn.Module, Room], Decoder]


@dataclass(frozen=True)
class Arm:
    """`exactness` names the noise that its check allows; `build` goes to the model's `from_config`. `warm_ups` are
    whole decodes before the first timed one: compiling and recording happen there. `prepare` changes the weights of the
    model before the plain answers are asked for, where random ones would not bear what the system does."""

    label: str
    make: Make
    exactness: str = "rounding"
    package: str | None = None
    gpu_only: bool = False
    build: dict[str, Any] = field(default_factory=dict)
    warm_ups: int = 1
    prepare: Callable[[nn.Module], None] | None = None

    def unavailable(self, cuda: bool) -> str | None:
        """Why this system cannot run here, or None."""
        if self.gpu_only and not cuda:
            return "needs an NVIDIA GPU"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        return None


def _generate(**options: Any) -> Make:
    return lambda model, room: GenerateDecoder(model, **options)


def _static(model: nn.Module, room: Room) -> Decoder:
    return GenerateDecoder(model, room.tokens, cache_implementation="static")


def _graph(compile_options: dict[str, Any] | None = None) -> Make:
    def make(model: nn.Module, room: Room) -> Decoder:
        decoder = GraphDecoder(model, room.tokens, room.compiling(compile_options))
        decoder.capture(room.prompt)
        return decoder

    return make


def _sdpa_only(backend: str) -> Make:
    return lambda model, room: ours.with_sdpa(GenerateDecoder(model), backend)


def _liger(model: nn.Module, room: Room) -> Decoder:
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model)
    changed = sum("forward" in vars(module) for module in model.modules())
    if not changed:
        raise RuntimeError(f"Liger changed nothing in a {type(model).__name__}, and said nothing")
    room.notes.append(f"{changed} modules run its kernels")
    return GenerateDecoder(model)


BATCHED = {"experts_implementation": "batched_mm"}
EAGER = {"experts_implementation": "eager"}
A_QUARTER = "38%"
"""Of Qwen3-4B's 8.04 GB: what is no layer, two slots, and 9 of its 36 layers."""

ARMS: dict[str, Arm] = {
    "plain-float32": Arm("generate, float32", _generate(), build={"dtype": "float32"}),
    "plain": Arm("generate, dynamic cache", _generate()),
    "plain-batched-mm": Arm("generate, experts batched_mm", _generate(), build=BATCHED),
    "plain-eager-experts": Arm("generate, experts eager", _generate(), build=EAGER),
    "plain-flash-only": Arm("generate, SDPA flash only", _sdpa_only("flash"), gpu_only=True),
    "plain-no-cudnn": Arm("generate, SDPA without cuDNN", _sdpa_only("no-cudnn"), gpu_only=True),
    "static-compile": Arm("generate, static cache (compiles itself)", _static, warm_ups=2),
    "graph-eager": Arm("CUDA graph, eager kernels", _graph()),
    "graph-inductor": Arm("CUDA graph over inductor", _graph(FULL)),
    "graph-inductor-tuned": Arm("CUDA graph over inductor, coordinate descent", _graph(TUNED)),
    "graph-inductor-batched-mm": Arm("CUDA graph over inductor, experts batched_mm", _graph(FULL), build=BATCHED),
    "torchao-int8": Arm("torchao int8 + CUDA graph, inductor as it is", quantized.torchao("int8"), "int8", "torchao"),
    "torchao-int8-tuned": Arm(
        "torchao int8, its own inductor settings", quantized.torchao("int8", tuned=True), "int8", "torchao", True
    ),
    "torchao-fp8": Arm("torchao fp8 + CUDA graph over inductor", quantized.torchao("fp8"), "fp8", "torchao", True),
    "torchao-int4": Arm("torchao int4 + CUDA graph over inductor", quantized.torchao("int4"), "int4", "torchao", True),
    "liger": Arm("Liger kernels, generate", _liger, package="liger_kernel", gpu_only=True),
    "cpu-offload": Arm("accelerate cpu_offload", offload.cpu_offload, package="accelerate"),
    "disk-offload": Arm("accelerate disk_offload", offload.disk_offload, package="accelerate"),
    "disk-offload-cold": Arm(
        "accelerate disk_offload, from a cold disk", offload.disk_offload_cold, package="accelerate"
    ),
    "pio-disk-cold": Arm("inference-pio disk_offloading, from a cold disk", offload.from_disk()),
    "pio-disk-cold-8": Arm("the same by 8 threads", offload.from_disk(8)),
    "pio-disk-cold-exponent12": Arm(
        "inference-pio disk_offloading over exponent12 weights", offload.from_disk(weights="exponent12")
    ),
    "pio-disk-offloading": Arm("inference-pio disk_offloading", ours.streamed),
    "pio-quarter": Arm("inference-pio disk_offloading, a quarter of the layers on the GPU", ours.within(A_QUARTER)),
    "pio-16gb": Arm("inference-pio disk_offloading, 16 GB of the GPU", ours.within("16GB")),
    "pio-memory-efficient-12gb": Arm(
        "inference-pio memory_efficient, 12 GB of the GPU", ours.within("12GB", "memory_efficient"), "int4"
    ),
    "library-kv-offload": Arm(
        "generate, cache_implementation='offloaded'", _generate(cache_implementation="offloaded"), gpu_only=True
    ),
    "pio-kv-host": Arm(
        "inference-pio activation_offloading, keys and values on the host", ours.hosted(), gpu_only=True
    ),
    "pio-kv-host-third": Arm(
        "the same, those of a third of the layers on the device", ours.hosted(1 / 3), gpu_only=True
    ),
    "pio-merged": Arm("inference-pio kernel_fusion merged", ours.fused("merged")),
    "pio-gemv": Arm("inference-pio kernel_fusion gemv, the library's loop", ours.fused("gemv"), gpu_only=True),
    "pio-graph": Arm("inference-pio kernel_fusion graph", ours.fused("graph")),
    "pio-graph-budget": Arm(
        "inference-pio graph, 4,096 tokens read behind the first 32 steps", ours.choosing(4096), gpu_only=True
    ),
    "pio-int4-budget": Arm(
        "inference-pio graph over int4 weights, head in fp8, 4,096 tokens read",
        ours.choosing(4096, format="int4", group_size=128, head="fp8"),
        "int4",
        gpu_only=True,
    ),
    "pio-graph-exact": Arm("inference-pio kernel_fusion graph, exact", ours.fused("graph", exact=True)),
    "pio-graph-waiting": Arm(
        "the same, no kernel begins before the last has ended",
        ours.launched(dependent=False, overlapping=False),
        gpu_only=True,
    ),
    "pio-graph-products": Arm(
        "the same, products alone begin before the last has ended", ours.launched(overlapping=False), gpu_only=True
    ),
    "pio-graph-two": Arm("the same, attention in two launches", ours.launched(joined=False), gpu_only=True),
    "pio-int8": Arm("inference-pio graph over int8 weights", ours.compressed(format="int8"), "int8"),
    "pio-fp8": Arm("inference-pio graph over fp8 weights", ours.compressed(format="fp8"), "fp8"),
    "pio-int4": Arm("inference-pio graph over int4 weights in groups of 128", ours.compressed(format="int4"), "int4"),
    "pio-int8-head": Arm(
        "inference-pio graph over int8 weights, the head's and the embedding's too",
        ours.compressed(format="int8", head="int8"),
        "int8",
    ),
    "pio-fp8-head": Arm(
        "inference-pio graph over fp8 weights, the head's and the embedding's too",
        ours.compressed(format="fp8", head="fp8"),
        "fp8",
    ),
    "pio-int4-head": Arm(
        "inference-pio graph over int4 weights in groups of 128, head and embedding in int8",
        ours.compressed(format="int4", head="int8"),
        "int4",
    ),
    "pio-exponent12": Arm("inference-pio graph over exponent12 weights", ours.compressed(format="exponent12")),
    "pio-kv-int8": Arm(
        "inference-pio graph over a cache in int8", ours.compressed(kv_cache="int8", targets=[]), "int8"
    ),
    "pio-decomposed": Arm(
        "inference-pio graph over two factors of half the numbers",
        factored.decomposed("plain"),
        "int8",
        prepare=factored.of_half_the_rank("plain"),
    ),
    "pio-decomposed-pivoted": Arm(
        "inference-pio graph over pivoted factors of half the numbers",
        factored.decomposed("pivoted"),
        "int8",
        prepare=factored.of_half_the_rank("pivoted"),
    ),
    "pio-decomposed-mlp": Arm(
        "inference-pio graph over two factors of the MLPs, half of all numbers gone",
        factored.decomposed("plain", "mlp"),
        "int8",
        prepare=factored.of_half_the_rank("plain", "mlp"),
    ),
    "pio-pruned": Arm(
        "inference-pio graph over three quarters of the MLPs' channels", narrow.pruned, prepare=narrow.of_fewer_channels
    ),
    "pio-graph-large-room": Arm("inference-pio graph, in room for 64K tokens", ours.in_large_room),
    "pio-lossless": Arm("inference-pio lossless", ours.profile("lossless")),
    "pio-balanced": Arm("inference-pio balanced", ours.profile("balanced"), "int8"),
    "pio-performance": Arm("inference-pio performance", ours.profile("performance"), "int4"),
    "pio-memory-efficient": Arm("inference-pio memory_efficient", ours.profile("memory_efficient"), "int4"),
}
