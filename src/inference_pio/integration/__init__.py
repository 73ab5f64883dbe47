"""The documented functions, pipelines and the short face: thin over the manager and the configuration."""

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
from inference_pio.integration.pipeline import OptimizationPipeline, create_optimization_pipeline
from inference_pio.integration.short import optimize, optimized, plan, restore

__all__ = [
    "OptimizationPipeline",
    "apply_glm_optimizations",
    "apply_model_family_optimizations",
    "apply_optimizations_by_config",
    "apply_qwen_optimizations",
    "create_optimization_pipeline",
    "get_model_optimization_status",
    "get_supported_optimizations",
    "optimize",
    "optimized",
    "plan",
    "reset_model_optimizations",
    "restore",
    "update_model_optimization",
]
