"""Families, their defaults, and profiles: YAML data with typed readers, and the manager that offers them."""

from inference_pio.configuration.config_manager import ConfigManager, get_config_manager
from inference_pio.configuration.families import ModelFamily, family_of_model
from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.profiles import GlobalOptimizationProfile

__all__ = [
    "ConfigManager",
    "GlobalOptimizationProfile",
    "ModelFamily",
    "ModelOptimizationConfig",
    "family_of_model",
    "get_config_manager",
]
