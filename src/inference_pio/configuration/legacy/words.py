"""The words of legacy configurations and what they mean today, as data.

Only names stand here. Whether an optimization is there, and takes a parameter, is asked of the registry each time, so
that a word becomes right by itself once its optimization is registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAMES = {"snn": "snn_conversion"}
"""Optimizations that had another name."""

DOCUMENTED = frozenset(
    {
        "flash_attention", "sparse_attention", "adaptive_sparse_attention",
        "disk_offloading", "activation_offloading", "tensor_compression",
        "kernel_fusion", "tensor_decomposition", "structured_pruning",
        "snn_conversion", "model_surgery",
    }
)  # fmt: skip
"""Optimizations that legacy configurations could name; one that is not registered here is reported, not refused."""

PARAMETERS: dict[str, tuple[str, ...]] = {
    "sparsity_ratio": ("sparsity_ratio",),
    "compression_ratio": ("compression_ratio",),
    "pruning_ratio": ("pruning_ratio",),
    "adaptive_strategy": ("adaptive_strategy", "mode"),
}
"""Parameters of legacy configurations, and the names under which an optimization may know them today."""

SWITCHES = {
    "use_flash_attention_2": "flash_attention",
    "use_sparse_attention": "sparse_attention",
    "enable_disk_offloading": "disk_offloading",
    "enable_activation_offloading": "activation_offloading",
    "enable_tensor_compression": "tensor_compression",
    "use_quantization": "tensor_compression",
    "enable_kernel_fusion": "kernel_fusion",
    "use_fused_layer_norm": "kernel_fusion",
    "enable_model_surgery": "model_surgery",
    "use_snn_conversion": "snn_conversion",
    "use_tensor_decomposition": "tensor_decomposition",
    "use_structured_pruning": "structured_pruning",
}
"""Flags that switch an optimization on or off."""

PART_OF_ANOTHER = frozenset({"use_fused_layer_norm"})
"""Switches of a part: true asks for the whole, and false beside the whole's true says nothing about the whole."""


@dataclass(frozen=True)
class Value:
    """A flag that holds a value: whose parameter it is, under which names, and what its values are called there."""

    owners: tuple[str, ...]
    parameters: tuple[str, ...]
    kind: type
    bounds: tuple[float, float] | None = None
    called: Mapping[Any, Any] | None = field(default=None, hash=False)


VALUES = {
    "sparse_attention_sparsity_ratio": Value(("sparse_attention",), ("sparsity_ratio",), float, (0, 1)),
    "offload_folder": Value(("disk_offloading",), ("offload_folder", "folder"), str),
    "quantization_bits": Value(("tensor_compression",), ("format",), int, (1, 32), {8: "int8", 4: "int4"}),
    "max_memory_ratio": Value(("disk_offloading", "activation_offloading"), ("max_memory_ratio",), float, (0, 1)),
}
"""Flags that hold a value."""

FLAGS = (*SWITCHES, *VALUES)
MEMBER_KEYS = ("name", "enabled", "optimization_type", "priority", "dependencies", "parameters")
DOCUMENT_KEYS = ("model_family", "default_enabled", "priority_order", "optimizations")
