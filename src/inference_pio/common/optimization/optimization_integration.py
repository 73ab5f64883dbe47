"""The documented functions, at their documented place."""

from inference_pio.integration import (
    OptimizationPipeline,
    apply_glm_optimizations,
    apply_model_family_optimizations,
    apply_optimizations_by_config,
    apply_qwen_optimizations,
    create_optimization_pipeline,
    get_model_optimization_status,
    get_supported_optimizations,
    migrate,
    migrate_file,
    register_default_optimizations,
    reset_model_optimizations,
    update_model_optimization,
)

__all__ = [
    "OptimizationPipeline",
    "apply_glm_optimizations",
    "apply_model_family_optimizations",
    "apply_optimizations_by_config",
    "apply_qwen_optimizations",
    "create_optimization_pipeline",
    "get_model_optimization_status",
    "get_supported_optimizations",
    "migrate",
    "migrate_file",
    "register_default_optimizations",
    "reset_model_optimizations",
    "update_model_optimization",
]
