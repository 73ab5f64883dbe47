"""Families, family configs and profiles, at their documented place."""

from inference_pio.configuration import (
    ConfigManager,
    FamilyVariant,
    GlobalOptimizationProfile,
    ModelFamily,
    ModelOptimizationConfig,
    PerformanceTargets,
    ResourceConstraints,
    create_balanced_profile,
    create_experimental_profile,
    create_glm_optimization_config,
    create_lossless_profile,
    create_memory_efficient_profile,
    create_performance_profile,
    create_qwen_optimization_config,
    get_config_manager,
)
from inference_pio.integration import register_default_optimizations

__all__ = [
    "ConfigManager",
    "FamilyVariant",
    "GlobalOptimizationProfile",
    "ModelFamily",
    "ModelOptimizationConfig",
    "PerformanceTargets",
    "ResourceConstraints",
    "create_balanced_profile",
    "create_experimental_profile",
    "create_glm_optimization_config",
    "create_lossless_profile",
    "create_memory_efficient_profile",
    "create_performance_profile",
    "create_qwen_optimization_config",
    "get_config_manager",
    "register_default_optimizations",
]
