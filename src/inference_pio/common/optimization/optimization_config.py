"""Families, family configs and profiles, at their documented place."""

from inference_pio.configuration import (
    ConfigManager,
    GlobalOptimizationProfile,
    ModelFamily,
    ModelOptimizationConfig,
    get_config_manager,
)

__all__ = [
    "ConfigManager",
    "GlobalOptimizationProfile",
    "ModelFamily",
    "ModelOptimizationConfig",
    "get_config_manager",
]
