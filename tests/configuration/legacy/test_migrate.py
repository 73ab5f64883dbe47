from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from inference_pio.configuration import ModelFamily, ModelOptimizationConfig
from inference_pio.configuration.legacy import is_legacy, migrate
from inference_pio.configuration.legacy.words import SWITCHES
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.integration.targets import family_target
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.attention.sparse_attention import SparseAttention
from inference_pio.plan.plan import Plan
from tests import tiny
from tests.configuration.legacy.later import Adaptive, Fusion, Offloading, Pruning, Spiking, one_day, today

BOTH = {"family": "qwen", "optimizations": ["flash_attention", "tensor_compression"]}
DOCUMENT = {
    "model_family": "qwen", "default_enabled": True, "priority_order": ["tensor_compression", "flash_attention"],
    "optimizations": [
        {"name": "flash_attention", "enabled": True, "optimization_type": "attention", "priority": 20,
         "dependencies": ["tensor_compression"], "parameters": {"use_triton": True}},
        {"name": "tensor_compression", "optimization_type": "memory", "priority": 10, "parameters": {"format": "int8"}},
    ],
}  # fmt: skip
SPARSE = {
    "family": "other", "optimizations": ["sparse_attention"], "defaults": {"sparse_attention": {"sparsity_ratio": 0.3}},
}  # fmt: skip
LEGACY_AND_NEW: dict[str, tuple[Any, dict[str, Any], tuple[Any, ...]]] = {
    "a document": (
        DOCUMENT,
        {
            **BOTH, "priorities": {"tensor_compression": 10, "flash_attention": 20},
            "dependencies": {"flash_attention": ["tensor_compression"]},
            "defaults": {"flash_attention": {"use_triton": True}, "tensor_compression": {"format": "int8"}},
        },
        (),
    ),
    "flags": (
        {"model_family": "qwen", "use_flash_attention_2": True, "use_quantization": True, "quantization_bits": 8},
        {**BOTH, "defaults": {"tensor_compression": {"format": "int8"}}},
        (),
    ),
    "an object": (
        SimpleNamespace(use_flash_attention_2=True, enable_tensor_compression=False, hidden_size=3),
        {"family": "other", "optimizations": ["flash_attention", {"name": "tensor_compression", "enabled": False}]},
        (),
    ),
    "the name snn": (
        {"optimizations": [{"name": "snn"}, {"name": "flash_attention"}]},
        {"family": "other", "optimizations": ["snn_conversion", "flash_attention"]},
        (Spiking,),
    ),
    "sparsity_ratio": (
        {"optimizations": [{"name": "sparse_attention", "parameters": {"sparsity_ratio": 0.3}}]},
        SPARSE,
        (SparseAttention,),
    ),
    "sparse_attention_sparsity_ratio": (
        {"use_sparse_attention": True, "sparse_attention_sparsity_ratio": 0.3},
        SPARSE,
        (SparseAttention,),
    ),
    "adaptive_strategy": (
        {"optimizations": [{"name": "adaptive_sparse_attention", "parameters": {"adaptive_strategy": "certified"}}]},
        {
            "family": "other", "optimizations": ["adaptive_sparse_attention"],
            "defaults": {"adaptive_sparse_attention": {"mode": "certified"}},
        },
        (Adaptive,),
    ),
    "pruning_ratio": (
        {"optimizations": [{"name": "structured_pruning", "parameters": {"pruning_ratio": 0.2}}]},
        {
            "family": "other", "optimizations": ["structured_pruning"],
            "defaults": {"structured_pruning": {"pruning_ratio": 0.2}},
        },
        (Pruning,),
    ),
    "offload_folder and max_memory_ratio": (
        {"enable_disk_offloading": True, "offload_folder": "/tmp/x", "max_memory_ratio": 0.5},
        {
            "family": "other", "optimizations": ["disk_offloading"],
            "defaults": {"disk_offloading": {"folder": "/tmp/x", "max_memory_ratio": 0.5}},
        },
        (Offloading,),
    ),
    "use_fused_layer_norm": (
        {"use_fused_layer_norm": True},
        {"family": "other", "optimizations": ["kernel_fusion"]},
        (Fusion,),
    ),
}  # fmt: skip


def plan_of(config: ModelOptimizationConfig, registry: OptimizationRegistry, monkeypatch: pytest.MonkeyPatch) -> Plan:
    manager = ModularOptimizationManager(registry)
    monkeypatch.setattr("inference_pio.integration.targets.get_optimization_manager", lambda: manager)
    model = tiny.build("qwen3")
    model.config.max_position_embeddings = 65536  # no member is left out because the model is too short for it
    return manager.plan(model, family_target(config, "qwen3"), profile="by config")


@pytest.mark.parametrize("form", LEGACY_AND_NEW)
def test_every_legacy_form_plans_what_the_new_spelling_plans(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    legacy, new, classes = LEGACY_AND_NEW[form]
    registry = one_day(*classes) if classes else today()
    before = copy.deepcopy(legacy)
    migration = migrate(legacy, registry)
    assert legacy == before
    assert migration.unmatched == ()
    migrated = plan_of(migration.config, registry, monkeypatch)
    assert migrated.steps
    assert migrated == plan_of(ModelOptimizationConfig(**new), registry, monkeypatch)


@pytest.mark.parametrize("flag", SWITCHES)
def test_every_switch_turns_its_optimization_on_or_is_reported_until_it_can(flag: str) -> None:
    registry = one_day()
    migration = migrate({flag: True}, registry)
    if SWITCHES[flag] in registry:
        assert migration.document["optimizations"] == [SWITCHES[flag]]
        assert migration.unmatched == ()
    else:
        assert migration.document["optimizations"] == []
        assert [one.key for one in migration.unmatched] == [flag]


def test_a_bit_width_becomes_right_by_itself_once_there_is_a_format_for_it() -> None:
    (unmatched,) = migrate({"use_quantization": True, "quantization_bits": 3}, today()).unmatched
    assert (unmatched.key, unmatched.value) == ("quantization_bits", 3)


def test_what_the_registry_offers_today_decides() -> None:
    legacy = {"use_snn_conversion": True, "use_flash_attention_2": True}
    assert migrate(legacy, today()).document["optimizations"] == ["flash_attention"]
    assert migrate(legacy, one_day(Spiking)).document["optimizations"] == ["flash_attention", "snn_conversion"]


def test_flags_take_the_family_of_the_call() -> None:
    assert migrate({"use_quantization": True}, today(), ModelFamily.GLM).config.family is ModelFamily.GLM
    with pytest.raises(InvalidSetting, match="model_family is 'qwen', but this call is for 'glm'"):
        migrate({"model_family": "qwen", "use_quantization": True}, today(), ModelFamily.GLM)


@pytest.mark.parametrize(
    ("given", "legacy"),
    [
        ({"use_quantization": "?"}, True),
        ({"model_family": "glm"}, True),
        ({"optimizations": []}, True),
        ({"family": "glm", "optimizations": []}, False),
        ({}, False),
        ({"use_cache": True}, False),
        (SimpleNamespace(offload_folder=None), True),
        (SimpleNamespace(use_cache=True), False),
        ("use_quantization", False),
        (None, False),
    ],
)
def test_legacy_forms_are_told_from_others(given: Any, legacy: bool) -> None:
    assert is_legacy(given) is legacy


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"family": "glm", "use_quantization": True}, "it is not legacy"),
        ({3: True}, "keys must be words, and 3 is none"),
        ({"offload_folder": b"x"}, "offload_folder: only words"),
        (SimpleNamespace(offload_folder=b"x"), "offload_folder: only words"),
        (SimpleNamespace(use_cache=True), "holds no flag that is known"),
        (3, "holds no flag that is known"),
    ],
)
def test_what_is_no_legacy_configuration_is_told(wrong: Any, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        migrate(wrong, today())


def test_an_unknown_flag_is_told() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'use_quantization'"):
        migrate({"use_quantisation": True}, today())


@pytest.mark.parametrize("old", ["sparsity_ratio", "pruning_ratio", "adaptive_strategy"])
def test_an_old_parameter_that_its_optimization_has_not_is_told_never_dropped(old: str) -> None:
    member = {"name": "tensor_compression", "parameters": {old: 0.5}}
    migration = migrate({"model_family": "qwen", "optimizations": [member]}, today())
    assert migration.document == {"family": "qwen", "optimizations": ["tensor_compression"]}
    (unmatched,) = migration.unmatched
    assert (unmatched.key, unmatched.value) == (f"optimizations.0.parameters.{old}", 0.5)
    assert unmatched.reason == "tensor_compression has no such parameter here"


def test_an_old_compression_ratio_is_the_share_of_the_bytes_that_is_saved() -> None:
    member = {"name": "tensor_compression", "parameters": {"compression_ratio": 0.5}}
    migration = migrate({"model_family": "other", "optimizations": [member]}, today())
    assert migration.document["defaults"] == {"tensor_compression": {"compression_ratio": 0.5}}
    assert not migration.unmatched
    registry = today()
    optimization = registry.create("tensor_compression", migration.document["defaults"]["tensor_compression"])
    assert optimization.parameters.format == "mixed"
