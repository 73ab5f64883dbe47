"""Families, their defaults, and profiles: YAML data with typed readers, and the manager that offers them."""

from inference_pio.configuration.config_manager import ConfigManager, get_config_manager
from inference_pio.configuration.families import ModelFamily, family_of_model
from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.family_variant import FamilyVariant
from inference_pio.configuration.hardware import HARDWARE_CLASSES, HardwareDifference, check_hardware_class
from inference_pio.configuration.missed_targets import MissedTarget, targets_missed
from inference_pio.configuration.performance_targets import PerformanceTargets
from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.configuration.quality_bounds import UNBOUNDED, QualityBounds
from inference_pio.configuration.resource_constraints import ResourceConstraints
from inference_pio.configuration.shipped import (
    create_balanced_profile,
    create_experimental_profile,
    create_glm_optimization_config,
    create_lossless_profile,
    create_memory_efficient_profile,
    create_performance_profile,
    create_qwen_optimization_config,
)

__all__ = [
    "HARDWARE_CLASSES",
    "UNBOUNDED",
    "ConfigManager",
    "FamilyVariant",
    "GlobalOptimizationProfile",
    "HardwareDifference",
    "MissedTarget",
    "ModelFamily",
    "ModelOptimizationConfig",
    "PerformanceTargets",
    "QualityBounds",
    "ResourceConstraints",
    "check_hardware_class",
    "create_balanced_profile",
    "create_experimental_profile",
    "create_glm_optimization_config",
    "create_lossless_profile",
    "create_memory_efficient_profile",
    "create_performance_profile",
    "create_qwen_optimization_config",
    "family_of_model",
    "get_config_manager",
    "targets_missed",
]
