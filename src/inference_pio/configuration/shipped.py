"""The shipped profiles and family configs, each by a function: always as they were shipped, whatever is registered."""

from __future__ import annotations

from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.configuration.reading import DATA, read_settings


def create_balanced_profile() -> GlobalOptimizationProfile:
    """For general use.

    >>> create_balanced_profile().members
    ('flash_attention', 'tensor_compression')
    """
    return _profile("balanced")


def create_performance_profile() -> GlobalOptimizationProfile:
    """For latency."""
    return _profile("performance")


def create_memory_efficient_profile() -> GlobalOptimizationProfile:
    """For little memory."""
    return _profile("memory_efficient")


def create_experimental_profile() -> GlobalOptimizationProfile:
    """For trying things out."""
    return _profile("experimental")


def create_lossless_profile() -> GlobalOptimizationProfile:
    """The model's own weights and algorithm, computed by faster kernels."""
    return _profile("lossless")


def create_glm_optimization_config() -> ModelOptimizationConfig:
    """The defaults of the GLM family, its variants too.

    >>> sorted(create_glm_optimization_config().variants)
    ['glm4_moe', 'glm4_moe_lite']
    """
    return _family("glm")


def create_qwen_optimization_config() -> ModelOptimizationConfig:
    """The defaults of the Qwen family, its variants too."""
    return _family("qwen")


def _profile(name: str) -> GlobalOptimizationProfile:
    return read_settings(DATA / "profiles" / f"{name}.yaml", GlobalOptimizationProfile)


def _family(name: str) -> ModelOptimizationConfig:
    return read_settings(DATA / "families" / f"{name}.yaml", ModelOptimizationConfig)
