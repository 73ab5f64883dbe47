"""The documented functions, pipelines and the short face: thin over the manager and the configuration."""

from inference_pio.configuration.config_manager import ConfigManager
from inference_pio.integration.defaults import register_default_optimizations
from inference_pio.integration.functions import (
    apply_glm_optimizations,
    apply_model_family_optimizations,
    apply_optimizations_by_config,
    apply_qwen_optimizations,
    get_model_optimization_status,
    get_supported_optimizations,
    reset_model_optimizations,
    update_model_optimization,
)
from inference_pio.integration.loading import load_pretrained
from inference_pio.integration.migrating import migrate, migrate_file
from inference_pio.integration.pipeline import OptimizationPipeline, create_optimization_pipeline
from inference_pio.integration.short import optimize, optimized, plan, restore
from inference_pio.manager import get_optimization_manager

__all__ = [
    "OptimizationPipeline",
    "apply_glm_optimizations",
    "apply_model_family_optimizations",
    "apply_optimizations_by_config",
    "apply_qwen_optimizations",
    "create_optimization_pipeline",
    "get_model_optimization_status",
    "get_supported_optimizations",
    "load_pretrained",
    "migrate",
    "migrate_file",
    "optimize",
    "optimized",
    "plan",
    "register_default_optimizations",
    "reset_model_optimizations",
    "restore",
    "update_model_optimization",
]

ConfigManager.ask(lambda: get_optimization_manager().registry)
